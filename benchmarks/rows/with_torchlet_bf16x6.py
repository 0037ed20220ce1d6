"""Rows of large float32 products in torchlet, each product as six of bfloat16 on AMX at float32 accuracy."""

import os

os.environ["TORCHLET_CPU_FLOAT32_DOT"] = "bf16x6"  # read when torchlet is imported

from rows.with_torchlet import VERSIONS, gpt, gpt_block, linear_cross_entropy, mlp_adamw, mlp_large, mlp_sgd, number, wait

__all__ = ["VERSIONS", "gpt", "gpt_block", "linear_cross_entropy", "mlp_adamw", "mlp_large", "mlp_sgd", "number", "wait"]
