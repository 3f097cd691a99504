"""How mristream is run: locally, in containers, and watched."""
