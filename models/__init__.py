"""Teachers and students, how they are cut into blocks, their files, and training a teacher."""
