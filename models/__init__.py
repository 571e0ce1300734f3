"""The networks: block-wise VGG, checkpoint files of the released layout, and training a teacher."""
