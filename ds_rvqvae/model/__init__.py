"""The RVQ-VAE: encoder, residual quantizer, decoder, losses, streaming. It knows neither DeepSpeed nor files."""
