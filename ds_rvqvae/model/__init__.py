"""The RVQ-VAE: encoder, residual quantizer, decoder, losses, and their shapes. Knows neither DeepSpeed nor files."""
