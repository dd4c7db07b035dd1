"""Evidence from a real GPU: what is predicted and promised, held against what one card does.

    make gpu-evidence [PART=accuracy] [DEVICE=cpu]

Parts (`evidence.PARTS`) run real trials through `autofit.launch` and `autofit.worker`, the code of every search; nothing is
measured in a second way here. Each part ends within its time limit and goes on where it stopped when it is called again. On the
CPU the same code runs with tiny models: a rehearsal, whose figures say nothing about a GPU and are kept apart.
"""
