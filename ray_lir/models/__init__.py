"""The model tower (torch): checkpoints become encoders, encoders turn text into TokenEmbeddings."""
