"""Whether this GLNet computes what the official code computes: `python -m reference.glnet FOLDER`.

A folder of golden data holds what the official code gave, on the CPU and in float32, for weights,
images and labels that formulas make (`formulas`): evaluation cases in `golden_*.json` with
`golden_*.npz`, training steps in `train_*.json`, and how far the official code in float64 is from
itself in float32 in `noise_f32_vs_f64_*.json`. What is compared is what the strategies and phases
of `glnet` compute on their way to labels and losses, read off by hooks."""
