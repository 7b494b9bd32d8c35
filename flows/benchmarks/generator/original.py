"""What the original CrystalFormer does, measured, for the benchmarks that compare with it.

CrystalFormer v0.4.2 (commit be3c6c8) with jax 0.5.3 and dm-haiku 0.0.14 on 2 cores of a shared 2.5 GHz Xeon (Cascade
Lake), CPU, 2026-11-22; crystals of the Materials Project. The machine was noisy: ratios are firmer than seconds.
"""

from __future__ import annotations

from typing import Any

MEASURED_ON = (
    "CrystalFormer v0.4.2 (be3c6c8), jax 0.5.3, dm-haiku 0.0.14, 2 cores of a shared 2.5 GHz Xeon, CPU, 2026-11-22, "
    "after compilation"
)
SIZES: dict[str, dict[str, Any]] = {  # arguments of `ModelConfig.published`
    "published": {},  # 16 layers, 16 heads of 64, width 64: 4,833,575 parameters
    "small": {"layers": 4, "heads": 4, "head_size": 32},  # 321,831 parameters
}
# Crystals a second at batch 100. The original samples in float64 whatever it is asked (it is what its masks need);
# with float32 forced it would give 0.18 (published) and 9.2 (small), at batch 500 0.29 (published, float32).
SAMPLING = {"published": 0.117, "small": 2.4}  # small: 2.2 to 2.6
SAMPLING_FLOAT32 = {"published": 0.18, "small": 9.2}
# Seconds of one step at batch 100 in float32 (wall clock, two cores), and CPU seconds of the same.
TRAINING = {"published": 14.4, "small": 0.67}
TRAINING_CPU = {"published": 24.8, "small": 1.16}
PREPARATION = 35.5  # CIFs a second on 2 workers
