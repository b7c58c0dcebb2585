"""Rivals as their papers define them, one file each, where segmentation-models-pytorch has another
or none.

Every network takes images (N, 3, H, W) whose sides divide by its `stride` and gives scores (N, K,
H, W). One that the published ImageNet weights fit has an `encoder`; one with auxiliary losses has
`heads`: (weight, scores) of every output that training looks at, the main one first."""
