"""`python -m ddclip_cli` is `ddclip`."""

from ddclip_cli.app import main

if __name__ == "__main__":
    main()
