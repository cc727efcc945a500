"""A loop of one's own around a run: measure now and then, stop when it is good enough."""

import instil

GOOD_ENOUGH = 0.5  # the instructor itself is at 0.15 with 10,000 images, 35 evaluations each

run = instil.distil("digits", steps=400, name="own-loop")
for update in run:
    if update.step % 50:
        continue
    # Numbers are tensors on the device: reading them makes a GPU wait, so read them seldom.
    loss = float(update.losses["student"])
    distance = instil.fid(run.student, "digits", extractor="digits", samples=1000)
    print(f"update {update.step}: loss {loss:.3f}, {distance!r}")
    if distance < GOOD_ENOUGH:
        break

run.export(run.folder / "good-enough")
print(f"{run.folder / 'good-enough'}: one evaluation per image, {run.student.nfe=}")
