"""A server on localhost that answers as the Hugging Face hub does."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
from urllib import parse

COMMIT = 'c' * 40


class Hub:
  """Serves folders as repositories.

  Args:
    repositories: {owner/name: folder, or the status of a refusal}.

  Attributes:
    url: of the server.
    loaded: names of the files whose contents were sent, as owner/name/file.
    broken: whether contents end before they are complete.
  """

  def __init__(self, repositories):
    self.repositories, self.loaded, self.broken = repositories, [], False

    class Handler(http.server.BaseHTTPRequestHandler):
      hub = self
      protocol_version = 'HTTP/1.1'

      def do_GET(self):
        self.hub.answer(self)

      do_HEAD = do_GET

      def log_message(self, *_):
        pass

    self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self.server.server_port}'

  def answer(self, request):
    """Answers one request."""
    path = parse.unquote(parse.urlsplit(request.path).path).strip('/')
    parts = path.removeprefix('api/models/').split('/')
    name, rest = '/'.join(parts[:2]), parts[2:]
    folder = self.repositories.get(name, 401)
    if isinstance(folder, int):
      # As the hub answers without a login, to hide what is private.
      code = 'GatedRepo' if folder == 403 else 'RepoNotFound'
      return self.send(request, folder, b'', {'X-Error-Code': code})
    if rest[:1] in (['revision'], ['resolve']) and rest[1] not in (
      'main',
      COMMIT,
    ):
      headers = {'X-Error-Code': 'RevisionNotFound'}
      return self.send(request, 404, b'', headers)
    if rest[:1] == ['resolve']:
      return self.send_file(request, name, folder, '/'.join(rest[2:]))
    files = [p for p in sorted(folder.rglob('*')) if p.is_file()]
    entries = [
      {
        'type': 'file',
        'path': path.relative_to(folder).as_posix(),
        'rfilename': path.relative_to(folder).as_posix(),
        'size': path.stat().st_size,
        'oid': digest(path),
      }
      for path in files
    ]
    info = {'id': name, 'modelId': name, 'sha': COMMIT, 'siblings': entries}
    body = entries if rest[:1] == ['tree'] else info
    self.send(request, 200, json.dumps(body).encode())

  def send_file(self, request, name, folder, file):
    """Sends a file of a repository."""
    path = folder / file
    if not path.is_file():
      headers = {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': COMMIT}
      return self.send(request, 404, b'', headers)
    if request.command == 'GET':
      self.loaded.append(f'{name}/{file}')
    headers = {'X-Repo-Commit': COMMIT, 'ETag': f'"{digest(path)}"'}
    self.send(request, 200, path.read_bytes(), headers)

  def send(self, request, status, body, headers=()):
    """Sends an answer, cut off if the hub is broken."""
    request.send_response(status)
    for key, value in dict(headers).items():
      request.send_header(key, value)
    request.send_header('Content-Length', str(len(body)))
    request.end_headers()
    if request.command == 'GET':
      request.wfile.write(body[: len(body) // 2] if self.broken else body)
    if self.broken:
      request.close_connection = True


def digest(path):
  """Returns what a file is known by."""
  return hashlib.sha1(pathlib.Path(path).read_bytes()).hexdigest()


@contextlib.contextmanager
def serve(repositories):
  """Starts a Hub, and ends it after."""
  hub = Hub(repositories)
  thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    hub.server.shutdown()
    hub.server.server_close()
