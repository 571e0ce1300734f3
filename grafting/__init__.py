"""The method. Read recipes, scions, teacher, inputs, distillation, method and stages, in this order."""
