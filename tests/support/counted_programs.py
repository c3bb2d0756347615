"""Runs a command and writes which programs it compiled, and which it read.

python -m tests.support.counted_programs FILE sdxl_jax.sample --weights ...
"""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import jax

COMPILING = '/jax/core/compile/backend_compile_duration'
READ = '/jax/compilation_cache/cache_hits'


def run(folder, module, *args, seed=0):
  """Runs a command in a new process whose programs are kept in a folder.

  Args:
    folder: of the programs.
    module: of the command.
    *args: its flags.
    seed: of Python's hashes, which differ between any two starts.

  Returns:
    the completed process, whose attributes `compiled` and `read` list the names
    of programs in order.
  """
  environment = os.environ | {'PYTHONHASHSEED': str(seed)}
  for name in list(environment):
    if name.startswith(('JAX_COMPILATION', 'JAX_PERSISTENT')):
      del environment[name]
  file = pathlib.Path(folder).with_suffix('.json')
  command = [sys.executable, '-m', __name__, file, module]
  done = subprocess.run(
    [*map(str, command), *map(str, args), f'--cache_dir={folder}'],
    env=environment,
    capture_output=True,
    text=True,
  )
  found = json.loads(file.read_text())
  done.compiled, done.read = found['compiled'], found['read']
  return done


def main():
  file, module, *args = sys.argv[1:]
  found = {'compiled': [], 'read': []}
  was_read = []

  def on_event(event, **details):
    if event == READ:
      was_read.append(True)

  def on_duration(event, seconds, fun_name='', **details):
    if event == COMPILING:
      found['read' if was_read else 'compiled'].append(fun_name)
      was_read.clear()
      pathlib.Path(file).write_text(json.dumps(found))

  jax.monitoring.register_event_listener(on_event)
  jax.monitoring.register_event_duration_secs_listener(on_duration)
  sys.argv = [module, *args]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
