"""Students: one step, few steps, generators of GANs, their export."""
