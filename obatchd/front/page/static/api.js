// Calls to the daemon. The token is in sessionStorage, which no other port shares, and goes out as a Bearer token.

const KEPT = 'obatchd.token';
const BELOW = '/obatchd/v1';
const CODE = /^#([A-Za-z0-9_-]{20,})$/;
const ANSWER_MS = 15000;

export const ended = { told: () => {} }; // the page says here what is to happen when nobody is signed in any more

export class Refusal extends Error {
  constructor(status, problem) {
    super(problem.message || `the daemon answered with status ${status}`);
    this.status = status;
    this.code = problem.code || '';
  }
}

export const token = () => sessionStorage.getItem(KEPT);

/** Exchange the code of a link for a token. It works once, so the code goes from the address at once. */
export async function signIn(fragment) {
  const code = CODE.exec(fragment);
  if (!code) return false;
  history.replaceState(null, '', location.pathname + location.search + '#/fleet');
  const { body } = await call('POST', '/page/session', { code: code[1] });
  sessionStorage.setItem(KEPT, body.token);
  return true;
}

export async function signOut() {
  try {
    await call('DELETE', '/page/session');
  } catch { // it ends by itself, at the latest with the daemon or after twelve hours
  } finally {
    forget();
  }
}

function forget() {
  sessionStorage.removeItem(KEPT);
  ended.told();
}

function headers(more) {
  const found = { Accept: 'application/json', ...more };
  if (token()) found.Authorization = `Bearer ${token()}`;
  return found;
}

function judged(status, text, path) {
  let body = null;
  try {
    body = text ? JSON.parse(text) : null;
  } catch { /* said below */ }
  if (status === 401 && path !== '/page/session') forget();
  if (status >= 400) throw new Refusal(status, body?.error || {});
  if (body === null && status !== 304 && status !== 204) throw new Refusal(status, { message: 'the daemon answered with no JSON' });
  return body;
}

/** One call; `{status, body, etag}`. Raises Refusal, or Error where no answer comes. */
async function call(method, path, sent, more = {}, within = ANSWER_MS) {
  const asked = { method, headers: headers(more), cache: 'no-store', signal: AbortSignal.timeout(within) };
  if (sent !== undefined) {
    asked.headers['Content-Type'] = 'application/json';
    asked.body = JSON.stringify(sent);
  }
  let answer, text;
  try {
    answer = await fetch(path, asked);
    text = await answer.text();
  } catch { // no connection, or no answer in time
    throw new Error('obatchd does not answer');
  }
  return { status: answer.status, body: judged(answer.status, text, path), etag: answer.headers.get('ETag') };
}

const inQuery = (query) => {
  const given = Object.entries(query || {}).filter(([, value]) => value !== null && value !== undefined && value !== '');
  return given.length ? '?' + new URLSearchParams(given) : '';
};

export const get = async (path, query) => (await call('GET', BELOW + path + inQuery(query))).body;
export const post = async (path, sent, within) => (await call('POST', BELOW + path, sent, {}, within)).body;
export const erase = async (path) => (await call('DELETE', BELOW + path)).body;

/** The document of the page; null where it is the same as the one with `etag`. */
export async function look(query, etag) {
  const answer = await call('GET', BELOW + '/page' + inQuery(query), undefined, etag ? { 'If-None-Match': etag } : {});
  return answer.status === 304 ? null : { document: answer.body, etag: answer.etag };
}

/** Send a file. `progress(bytes)` is called meanwhile; `sending.abort()` of the object ends it. */
export function upload(content, progress) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.open('POST', '/v1/files');
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => progress(event.loaded);
    request.onerror = () => reject(new Error('the connection broke off'));
    request.onabort = () => reject(new DOMException('cancelled', 'AbortError'));
    request.onload = () => {
      try {
        resolve(judged(request.status, request.responseText, '/v1/files').id);
      } catch (error) {
        reject(error);
      }
    };
    const form = new FormData();
    form.append('purpose', 'batch');
    form.append('expires_after[anchor]', 'created_at');
    form.append('expires_after[seconds]', '3600');
    form.append('file', content, 'drop');
    request.send(form);
  });
  return { done, abort: () => request.abort() };
}

/** Save a file of a job on this computer. */
export async function save(path, name) {
  const answer = await fetch(BELOW + path, { headers: headers({ Accept: '*/*' }), cache: 'no-store' });
  if (!answer.ok) judged(answer.status, await answer.text(), path);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
