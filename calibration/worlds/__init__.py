"""Generated worlds, whose facts a small model can be pretrained on."""
