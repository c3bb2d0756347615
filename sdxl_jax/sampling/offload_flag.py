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


class Flag(flags.Flag):
  """A flag that may be written without a value, or with `no` before it."""

  def __init__(self, name: str, default: str | bool, about: str) -> None:
    super().__init__(Parser(), None, name, default, about, boolean=True)
    self.default_as_str = repr(default)  # of booleans it would be 'true'


def define() -> None:
  """Defines the flag."""
  about = (
    'whether idle nets wait in host memory, which is slower and for small '
    'devices: auto, as many as do not fit; true, all; false, none'
  )
  flags.DEFINE_flag(Flag('offload', 'auto', about))
