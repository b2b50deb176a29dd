"""Prequential scores of learners, and the floors that a learner has to beat."""
