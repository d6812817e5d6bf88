"""The training objectives by name."""

from demask.objectives.autoregressive import Autoregressive
from demask.objectives.demask import Demask

OBJECTIVES = {"autoregressive": Autoregressive, "demask": Demask}
