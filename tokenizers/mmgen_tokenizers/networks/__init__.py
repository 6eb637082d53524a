"""Networks: what lies between pictures and latents, and the discriminator."""
