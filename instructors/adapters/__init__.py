"""One file per parameterisation: a network's time, scaling and prediction as D(x, sigma)."""
