"""Self-distillation experiments: networks (``distill.chain``) and kernel ridge regression (``distill.krr``)."""
