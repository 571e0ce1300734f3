"""The networks: block-wise VGG, the released files' layout, and training a teacher."""
