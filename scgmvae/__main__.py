"""``python -m scgmvae``: the command line."""

from scgmvae.cli import main

if __name__ == "__main__":
    main(prog_name="scgmvae")
