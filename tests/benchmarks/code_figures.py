"""Prints figures of the code's form: signatures, comments, annotations, calls.

  python -m tests.benchmarks.code_figures --workdir RUN

With the workdir of a diffusion run it also counts the functions of this package
that loading the run calls, by room. `--root` measures another checkout.
"""

import ast
import collections
import pathlib
import subprocess
import sys

from absl import app, flags

ROOMS = ('models', 'diffusion', 'text', 'sampling', 'checkpoints')
# Traced in a process of its own, so that the checkout's modules are imported.
TRACE = """
import sys
root, workdir = sys.argv[1:]
sys.path.insert(0, root)
from sdxl_jax.sampling import pipelines
called = set()
def note(frame, event, arg):
  path, name = frame.f_code.co_filename, frame.f_code.co_name
  if event == 'call' and path.startswith(root + '/sdxl_jax'):
    if not name.startswith('<'):
      called.add((path[len(root) + len('/sdxl_jax/'):], name))
sys.setprofile(note)
pipelines.load(workdir)
sys.setprofile(None)
for path, name in sorted(called):
  print('CALLED', path, name)
"""


def parameters(function):
  """Returns the ast.arg of all parameters but self and cls."""
  args = function.args
  listed = [*args.posonlyargs, *args.args, *args.kwonlyargs]
  listed += [arg for arg in (args.vararg, args.kwarg) if arg]
  return [arg for arg in listed if arg.arg not in ('self', 'cls')]


def is_annotated(function):
  """Returns whether a function has types of all parameters and its result."""
  typed = all(arg.annotation for arg in parameters(function))
  return typed and function.returns is not None


def count_literals(tree):
  """Counts literal tuples and lists that are unpacked in calls."""
  calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
  stars = [a for c in calls for a in c.args if isinstance(a, ast.Starred)]
  return sum(isinstance(star.value, ast.Tuple | ast.List) for star in stars)


def count_named_lambdas(tree):
  """Counts lambdas that are assigned to a name."""
  return sum(
    isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)
    for node in ast.walk(tree)
  )


def measure(root):
  """Measures the package and the configs of a checkout; returns lines."""
  totals, public = collections.Counter(), collections.Counter()
  longest = (0, '')
  paths = [p for d in ('sdxl_jax', 'configs') for p in (root / d).rglob('*.py')]
  for path in paths:
    text = path.read_text()
    tree, name = ast.parse(text), path.relative_to(root)
    lines = text.splitlines()
    totals['files'] += 1
    totals['lines'] += len(lines)
    totals['comments'] += sum(
      line.lstrip().startswith('#') or '  # ' in line for line in lines
    )
    totals['literals'] += count_literals(tree)
    totals['lambdas'] += count_named_lambdas(tree)
    in_sampling = name.parts[:2] == ('sdxl_jax', 'sampling')
    totals['climbs'] += in_sampling * text.count('sdxl_jax.training')
    for node in ast.walk(tree):
      if not isinstance(node, ast.FunctionDef):
        continue
      longest = max(longest, (len(parameters(node)), f'{name}:{node.name}'))
      if name.parts[1] in ROOMS and not node.name.startswith('_'):
        public['all'] += 1
        public['annotated'] += is_annotated(node)
  share = totals['comments'] / totals['lines']
  return [
    f'{totals["files"]} files, {totals["lines"]} lines',
    f'imports of training in sampling: {totals["climbs"]}',
    f'literal tuples unpacked in calls: {totals["literals"]}',
    f'named lambdas: {totals["lambdas"]}',
    f'longest signature: {longest[0]} parameters, {longest[1]}',
    f'lines with a comment: {share:.1%}',
    f'annotated, of the functions without underscore in {", ".join(ROOMS)}: '
    f'{public["annotated"]} of {public["all"]}',
  ]


def trace_loading(root, workdir):
  """Counts functions that loading a workdir calls, by room."""
  command = [sys.executable, '-c', TRACE, str(root), str(workdir)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  lines = [line.split() for line in done.stdout.splitlines()]
  called = [words[1] for words in lines if words[:1] == ['CALLED']]
  rooms = collections.Counter(path.split('/')[0] for path in called)
  listed = ', '.join(f'{room} {n}' for room, n in rooms.most_common())
  return f'functions called to load a workdir: {len(called)} ({listed})'


def main(argv):
  del argv
  root = pathlib.Path(flags.FLAGS.root).resolve()
  print('\n'.join(measure(root)))
  if flags.FLAGS.workdir:
    print(trace_loading(root, pathlib.Path(flags.FLAGS.workdir).resolve()))


if __name__ == '__main__':
  flags.DEFINE_string('root', '.', 'checkout to measure')
  flags.DEFINE_string('workdir', None, 'workdir of a diffusion run')
  app.run(main)
