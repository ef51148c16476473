"""Problems as the API's modules and users of the API import them."""

from relight_trainer.problems import Problem, join, problems_of, shown

__all__ = ["Problem", "join", "problems_of", "shown"]
