"""Training: one loop, its checkpoints, and the run folder it writes."""

from maskmend.callable_package import make_callable

make_callable(__name__, "maskmend.train.run", "train")
