"""The page: Gradio's components, and nothing that makes a picture."""
