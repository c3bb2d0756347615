"""The account of a dataset: how many records were seen, used, left out, why."""

import dataclasses
from typing import NamedTuple

MAX_NAMES = 2  # names shown of the records that are left out for one reason


class LeftOut(NamedTuple):
  """The records that are left out for one reason."""

  count: int
  names: tuple[str, ...]  # of the first MAX_NAMES


@dataclasses.dataclass(frozen=True)
class Account:
  """Counts of records; `seen` is `used` and all that is left out.

  Its string is a table for the user.
  """

  seen: int
  used: int
  left_out: dict[str, LeftOut]  # {reason: records}
  # {what: count} of files beside the records, and of what is worth knowing of
  # those used; not part of `seen`.
  beside: dict[str, int] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    lines = [f'{self.seen:>15,}  records seen', f'{self.used:>15,}  used']
    for reason, (count, names) in self.left_out.items():
      lines.append(f'{count:>15,}  left out: {reason}')
      lines += [f'{"":>19}{name}' for name in names]
      lines += [f'{"":>19}...'] * (count > len(names))
    lines += [f'{count:>15,}  {what}' for what, count in self.beside.items()]
    return '\n'.join(lines)


def total(accounts: dict[str, Account], repeated: int) -> Account:
  """Adds up the accounts of the sources of a mixture.

  Args:
    accounts: {name of a source: its account}.
    repeated: records of a pass that repeat others, to reach the shares.
  """
  left_out, beside = {}, {}
  for name, account in accounts.items():
    beside[f'of them used of {name}, of {account.seen:,}'] = account.used
  for name, account in accounts.items():
    for reason, records in account.left_out.items():
      left_out[f'{name}: {reason}'] = records
    for what, count in account.beside.items():
      beside[f'{name}: {what}'] = count
  if repeated:
    beside['repetitions in a pass, to reach the shares'] = repeated
  return Account(
    seen=sum(account.seen for account in accounts.values()),
    used=sum(account.used for account in accounts.values()),
    left_out=left_out,
    beside=beside,
  )
