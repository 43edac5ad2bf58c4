"""The page of `spinsr app`: images through the shipped networks in a browser; needs the extra `app` (Gradio)."""
