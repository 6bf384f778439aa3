"""What a router does with a confidence: keep the small model's answer, or pay for the large model's."""
