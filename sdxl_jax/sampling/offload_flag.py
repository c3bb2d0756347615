"""The flag --offload: auto, true or false; also bare, and as --nooffload."""

from absl import flags


class Parser(flags.ArgumentParser):
  """Parses 'auto' or a boolean."""

  syntactic_help = 'auto, true or false'

  def parse(self, argument: str | bool) -> str | bool:
    """Returns 'auto', True or False.

    Raises:
      ValueError: for another value.
    """
    if argument == 'auto':
      return argument
    try:
      return flags.BooleanParser().parse(argument)
    except ValueError:
      raise ValueError(f'{argument!r} is not {self.syntactic_help}') from None

  def flag_type(self) -> str:
    """Returns the name of the type."""
    return 'auto or bool'


def make() -> flags.Flag:
  """Makes the flag, which may be written without a value or as --nooffload."""
  flag = flags.Flag(
    Parser(),
    None,
    'offload',
    'auto',
    'whether idle nets wait in host memory, which is slower and for small '
    'devices: auto, as many as do not fit; true, all; false, none',
    boolean=True,
  )
  flag.default_as_str = "'auto'"  # otherwise that of a boolean
  return flag
