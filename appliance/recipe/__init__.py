"""The recipe: the only input that a user writes, checked whole before anything runs."""

from appliance.recipe.document import find_recipe
from appliance.recipe.load import load_recipe
from appliance.recipe.schema import (
    DataFormat,
    DataSection,
    ExportSection,
    Method,
    ModelSection,
    Recipe,
    ServeSection,
    Shape,
    TokenizerTraining,
    TrainSection,
)

__all__ = [
    "DataFormat",
    "DataSection",
    "ExportSection",
    "Method",
    "ModelSection",
    "Recipe",
    "ServeSection",
    "Shape",
    "TokenizerTraining",
    "TrainSection",
    "find_recipe",
    "load_recipe",
]
