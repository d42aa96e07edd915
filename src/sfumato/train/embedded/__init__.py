"""Training of the embedded models: dataset, autoencoder, text and diffusion models, evaluation."""
