"""List the examples, with the command that runs each."""

from importlib.resources import files

from textpatch.examples import summaries


def main() -> None:
    for name, summary in summaries().items():
        print(f"python -m textpatch.examples.{name}\n    {summary}")
    notebook = files("textpatch.examples") / "first_hour.ipynb"
    print(f"jupyter lab {notebook}\n    From nothing to an edited word, with its pictures.")


if __name__ == "__main__":
    main()
