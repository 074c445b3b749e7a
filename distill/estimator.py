"""The scikit-learn estimators, under their public name."""

from distill.kernel.estimator import SelfDistilledKernelRidge, SelfDistilledKernelRidgeClassifier

__all__ = ["SelfDistilledKernelRidge", "SelfDistilledKernelRidgeClassifier"]
