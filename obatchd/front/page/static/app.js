// The page: signing in, one document every two seconds, what stands above every view, and which view is shown.
import { html, render, useEffect, useErrorBoundary, useRef, useState } from './vendor/standalone.module.js';
import { ended, look, signIn, signOut, token } from './api.js';
import { Fleet, remember } from './fleet.js';
import { Jobs } from './jobs.js';
import { Job } from './job.js';
import { Submit } from './submit.js';
import { Burnin, History } from './measured.js';
import { State, counted, number, rate, size, time, visible, words } from './parts.js';

const SHOWN_S = 2, HIDDEN_S = 10, STALE_MS = 7000, SLOW_MS = 5000;
const VIEWS = { fleet: 'Fleet', jobs: 'Jobs', submit: 'Submit', history: 'History', burnin: 'Burn-in' };
const FEW = 20, MANY = 100;

const now = { document: null, etag: null, at: 0, problem: '', asked: 0, limit: MANY, owner: '', refused: '' };
let timer, running = false, wanted = false;

/** The fresh document, with the objects of the old one wherever they are equal, so that only what changed is drawn anew. */
export function merged(old, fresh) {
  if (old === fresh || !old || !fresh || typeof old !== 'object' || typeof fresh !== 'object') return fresh;
  if (Array.isArray(old) !== Array.isArray(fresh)) return fresh;
  if (Array.isArray(fresh)) {
    const name = fresh[0]?.job ? 'job' : fresh[0]?.uuid ? 'uuid' : null;
    const known = name && new Map(old.map((each) => [each[name], each]));
    const next = fresh.map((each, at) => merged(known ? known.get(each[name]) : old[at], each));
    return next.length === old.length && next.every((each, at) => each === old[at]) ? old : next;
  }
  let changed = Object.keys(old).length !== Object.keys(fresh).length;
  for (const key in fresh) {
    fresh[key] = merged(old[key], fresh[key]);
    changed ||= fresh[key] !== old[key];
  }
  return changed ? fresh : old;
}

async function poll(fresh) {
  clearTimeout(timer);
  if (running) return void (wanted = wanted || fresh);
  if (!token()) return;
  running = true;
  now.asked = Date.now();
  const jobs = place().view === 'jobs' ? now.limit : FEW;
  try {
    const found = await look({ jobs, owner: now.owner, fresh: fresh ? 1 : null }, now.etag);
    if (found) take(found);
    Object.assign(now, { at: Date.now(), problem: '' });
  } catch (error) {
    now.problem = words(error);
  }
  running = false;
  if (!token()) return;
  draw();
  if (wanted) {
    wanted = false;
    poll(true);
  } else {
    timer = setTimeout(poll, (document.hidden ? HIDDEN_S : SHOWN_S) * 1000);
  }
}

function take({ document: fresh, etag }) {
  const began = now.document?.status;
  if (began && began.version !== fresh.status.version) location.reload();
  now.document = merged(now.document, fresh);
  now.etag = etag;
  remember(now.document);
}

/** At once after something was done, and built anew. */
const again = () => poll(true);

function place() {
  const [view, which] = location.hash.replace(/^#\/?/, '').split('/');
  return { view: VIEWS[view] ? view : 'fleet', which: which ? decodeURIComponent(which) : '' };
}

function Head({ view, stale }) {
  const { status, administrator } = now.document;
  const others = Object.entries(VIEWS).filter(([name]) => administrator || name !== 'burnin');
  const tokens = status.servers.reduce((sum, server) => sum + server.tokens_per_s, 0);
  return html`<header><div class="top"><a class="name" href="#/fleet">obatchd</a><span class="host">${location.host}</span>
      <nav aria-label="Views">${others.map(([name, word]) => html`<a href=${`#/${name}`} aria-current=${view === name ? 'page' : undefined}>${word}${
        name === 'burnin' && status.burnin ? html` <span class="now">running</span>` : ''}</a>`)}</nav>
      <span class="quiet">${administrator ? 'administrator' : `user ${now.document.uid}`}</span><button class="small" onClick=${signOut}>Sign out</button></div>
    ${stale && html`<p class="stale" role="status"><strong>No answer since ${time(now.at)}.</strong> What is shown is from then${
      now.problem && ` (${now.problem})`}. The page tries again by itself. In a terminal: <code>obatchctl status</code></p>`}
    <dl class="sum"><div><dt>State</dt><dd><${State} of=${status.state} /></dd></div>
      <div><dt>Tokens/s</dt><dd>${rate(tokens)}</dd></div><div><dt>Requests/s</dt><dd>${rate(status.queue.requests_per_s)}</dd></div>
      <div><dt>In slots</dt><dd>${number(status.servers.reduce((sum, server) => sum + server.in_flight, 0))} of ${number(status.servers.reduce((sum, server) => sum + server.slots, 0))}</dd></div>
      <div><dt>Waiting</dt><dd>${counted(status.queue.requests, 'request')} of ${counted(status.queue.jobs, 'job')}</dd></div>
      ${status.interactive && html`<div><dt>People asking</dt><dd>${number(status.interactive.in_flight)}, ${number(status.interactive.waiting)} waiting</dd></div>`}
      <div><dt>Disk free</dt><dd class=${status.disk.low ? 'is-bad' : ''}>${size(status.disk.free_bytes)}${status.disk.low ? ', too low' : ''}</dd></div>
      <div><dt>As of</dt><dd>${time(now.at)}</dd></div></dl>
    <${Reasons} status=${status} /></header>`;
}

function Reasons({ status }) {
  const blocked = status.inbox.blocked.map((drop) => `${drop.name} waits in the inbox: ${drop.reason}`);
  const why = [...status.reasons, ...(status.inbox.problem ? [status.inbox.problem] : []), ...blocked];
  const pulls = status.pulls.map((pull) => `${pull.model} is being downloaded: ${pull.status}${
    pull.total_bytes ? `, ${size(pull.completed_bytes)} of ${size(pull.total_bytes)}` : ''}`);
  if (!why.length && !status.notices.length && !pulls.length) return null;
  return html`<ul class="reasons">${why.map((text) => html`<li class="why"><span aria-hidden="true">▲</span> ${visible(text)}</li>`)}
    ${[...pulls, ...status.notices].map((text) => html`<li>${visible(text)}</li>`)}
    ${why.length > 0 && html`<li class="quiet">What to do: <code>obatchctl doctor</code></li>`}</ul>`;
}

function View({ view, which }) {
  const [problem, reset] = useErrorBoundary((error) => console.error(error));
  if (problem) return html`<p class="is-bad">This view failed: ${problem.message} <button onClick=${reset}>Try again</button></p>`;
  const page = now.document;
  const more = (limit, owner) => { Object.assign(now, { limit, owner, etag: null }); again(); };
  switch (view) {
    case 'jobs': return which ? html`<${Job} key=${which} id=${which} page=${page} again=${again} />`
      : html`<${Jobs} page=${page} again=${again} limit=${now.limit} owner=${now.owner} more=${more} />`;
    case 'submit': return html`<${Submit} again=${again} />`;
    case 'history': return html`<${History} />`;
    case 'burnin': return page.administrator ? html`<${Burnin} key=${which} which=${which} page=${page} />`
      : html`<p>Burn-ins are for administrators of obatchd.</p>`;
    default: return html`<${Fleet} page=${page} />`;
  }
}

function Page({ at }) {
  const main = useRef(), shown = useRef(`${at.view}/${at.which}`);
  const [, tick] = useState(0);
  useEffect(() => {
    const clock = setInterval(() => tick((count) => count + 1), 1000);
    return () => clearInterval(clock);
  }, []);
  useEffect(() => {
    document.title = `${VIEWS[at.view]}${at.which && ` ${at.which}`} – obatchd`;
    if (shown.current !== `${at.view}/${at.which}`) {
      main.current.focus({ preventScroll: true });
      scrollTo(0, 0);
    }
    shown.current = `${at.view}/${at.which}`;
  }, [at.view, at.which]);
  const silent = now.problem !== '' || (running && Date.now() - now.asked > SLOW_MS); // not where a tab only slept
  const stale = silent && Date.now() - now.at > STALE_MS * (document.hidden ? 3 : 1);
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>To the content</a>
    <${Head} view=${at.view} stale=${stale} /><main id="main" ref=${main} tabindex="-1" class=${stale ? 'old' : ''}>
    <h1 class="unseen">${VIEWS[at.view]}</h1><${View} ...${at} /></main>`;
}

function SignedOut() {
  const given = async (event) => {
    event.preventDefault();
    const link = new FormData(event.target).get('link').trim();
    await enter(link.slice(link.indexOf('#')));
  };
  return html`<main class="alone"><h1>obatchd</h1><p>Nobody is signed in here${now.document ? ' any more: a restart of obatchd or twelve hours ended it' : ''}.
    In a terminal on the host, type</p><p><code class="command">obatchctl web</code></p><p>and open the link that it prints. It works once, within a minute.</p>
    ${now.refused && html`<p class="is-bad" role="alert">${now.refused}</p>`}
    <form onSubmit=${given}><label>Or paste the link here <input name="link" type="text" autocomplete="off" required placeholder="http://…/#…" /></label> <button>Sign in</button></form></main>`;
}

function draw() {
  const shown = !token() ? html`<${SignedOut} />` : now.document ? html`<${Page} at=${place()} />`
    : html`<main class="alone" role="status"><h1>obatchd</h1><p>${now.problem ? `No answer yet: ${now.problem}. The page tries again by itself.` : 'Asking obatchd …'}</p></main>`;
  render(shown, document.getElementById('page'));
}

async function enter(fragment) {
  now.refused = '';
  try {
    if (!(await signIn(fragment)) && !token()) now.refused = fragment.length > 20 ? 'That is no link of obatchctl web.' : '';
  } catch (error) {
    now.refused = error.status ? `The link was refused: ${error.message}. Each works once, within a minute.` : words(error);
  }
  draw();
  poll();
}

ended.told = () => { clearTimeout(timer); now.etag = null; draw(); };
addEventListener('hashchange', () => (/^#\//.test(location.hash) ? (draw(), poll()) : location.hash.length > 20 && enter(location.hash)));
document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });
addEventListener('online', () => poll());
enter(location.hash);
