// All jobs: progress, rate, expected end, and what can be done with each.
import { html, useState } from './vendor/standalone.module.js';
import { erase, post } from './api.js';
import { Bar, NONE, Question, State, Table, counted, date, lasting, number, rate, visible, words } from './parts.js';

export const isOver = (job) => job.state === 'done' || job.state === 'refused';
const answered = (job) => job.succeeded + job.failed + job.cancelled + job.expired;
const notSucceeded = (job) => job.failed + job.cancelled + job.expired;

/** The state as people would say it. */
export const stateOf = (job) => (job.state !== 'done' ? (job.paused && !isOver(job) ? 'paused' : job.state)
  : job.cancelled ? 'cancelled' : job.expired ? 'expired' : job.failed ? 'with failures' : 'done');

export function Progress({ job }) {
  if (job.state === 'refused') return NONE;
  const total = job.requests ?? job.indexed, count = answered(job);
  const text = `${number(count)} / ${job.requests === null ? `${number(total)} read so far` : number(total)}`;
  return html`<${Bar} kind="progress" share=${total ? count / total : 0} bad=${total ? job.failed / total : 0} text=${text} />`;
}

/** When it will be over, or was. */
export function End({ job }) {
  if (isOver(job)) return html`<span class="quiet">${date(job.finished_at)}</span>`;
  if (job.paused) return html`<span class="quiet">when resumed</span>`;
  if (job.held_up) return html`<span class="is-warn">waits: ${visible(job.held_up)}</span>`;
  if (job.eta_s !== null) return html`in ${lasting(job.eta_s)}`;
  if (job.position !== null) return html`<span class="quiet">${job.position}. in the queue${job.expected_start_at ? `, from ${date(job.expected_start_at)}` : ''}</span>`;
  return NONE;
}

const QUESTIONS = {
  cancel: (job) => ({ text: `Cancel ${job.name}? Answers that are there stay; ${counted((job.requests ?? job.indexed) - answered(job), 'request')} will have none.`, word: 'Cancel the job' }),
  remove: (job) => ({ text: `Remove ${job.name} with all of its answers? Nothing of it can be had again.`, word: 'Remove it' }),
};

/** What can be done: buttons, and what came of it. `done` is called after each. */
export function Actions({ job, done }) {
  const [asked, ask] = useState(null);
  const [busy, setBusy] = useState('');
  const [said, say] = useState(null);
  const act = async (action) => {
    setBusy(action);
    say(null);
    try {
      const found = action === 'remove' ? await erase(`/jobs/${job.job}`) : await post(`/jobs/${job.job}/${action}`);
      if (action === 'retry') say({ text: 'tried again as', job: found.job?.job || found.job });
      done(action);
    } catch (error) {
      say({ text: words(error), bad: true });
    }
    setBusy('');
  };
  const button = (action, word, question) => html`<button class="small" disabled=${busy !== ''} aria-label=${`${word} ${job.name}`}
    onClick=${() => (question ? ask({ ...question(job), text: visible(question(job).text), yes: () => act(action) }) : act(action))}>${busy === action ? `${word} …` : word}</button> `;
  const over = isOver(job);
  return html`<span class="actions">${!over && job.state !== 'cancelling' && html`${job.paused ? button('resume', 'Resume') : button('pause', 'Pause')}${button('cancel', 'Cancel', QUESTIONS.cancel)}`}
    ${job.state === 'done' && notSucceeded(job) > 0 && button('retry', 'Retry')}${over && button('remove', 'Remove', QUESTIONS.remove)}
    ${said && html`<span role="status" class=${said.bad ? 'is-bad' : ''}>${visible(said.text)} ${said.job && html`<a href=${`#/jobs/${said.job}`}>${said.job}</a>`}</span>`}
    <${Question} asked=${asked} close=${() => ask(null)} /></span>`;
}

const columnsOf = (administrator, done) => [
  { name: 'Job', kind: 'name', by: (job) => job.label || job.name, cell: (job) => html`<a href=${`#/jobs/${job.job}`} title=${job.job}>${visible(job.label || job.name)}</a>${
    job.label && html` <span class="quiet">${visible(job.name)}</span>`}${job.sample_of ? html` <span class="tag">sample of ${number(job.sample_of)}</span>` : ''}${
    job.retry_of ? html` <span class="tag">retry</span>` : ''}${job.priority !== 'normal' ? html` <span class="tag">${job.priority}</span>` : ''}` },
  ...(administrator ? [{ name: 'User', kind: 'n wide', by: (job) => job.owner, cell: (job) => job.owner }] : []),
  { name: 'State', by: stateOf, cell: (job) => html`<${State} of=${stateOf(job)} />` },
  { name: 'Progress', kind: 'bars', by: (job) => answered(job) / (job.requests || job.indexed || 1), cell: (job) => html`<${Progress} job=${job} />` },
  { name: 'Failed', kind: 'n narrow', by: (job) => job.failed, cell: (job) => (job.failed ? html`<a class="is-bad" href=${`#/jobs/${job.job}`} aria-label=${`${counted(job.failed, 'failure')} of ${job.name}`}>${number(job.failed)}</a>` : html`<span class="quiet">0</span>`) },
  { name: 'Requests/s', kind: 'n wide', by: (job) => job.requests_per_s, cell: (job) => rate(isOver(job) ? job.totals?.requests_per_s : job.requests_per_s) },
  { name: 'Tokens/s', kind: 'n wide', by: (job) => job.tokens_per_s, cell: (job) => rate(isOver(job) ? job.totals?.tokens_per_s : job.tokens_per_s) },
  { name: 'End', by: (job) => (isOver(job) ? Date.parse(job.finished_at) / 1000 : 1e12 + (job.eta_s ?? 1e9)), cell: (job) => html`<${End} job=${job} />` },
  { name: 'Accepted', kind: 'wide', by: (job) => job.job, cell: (job) => html`<span class="quiet">${date(job.accepted_at)}</span>` },
  { name: 'Actions', kind: 'narrow', cell: (job) => html`<${Actions} job=${job} done=${done} />` },
];

const KINDS = [
  ['all', 'All', () => true],
  ['work', 'In work', (job) => !isOver(job)],
  ['failures', 'With failures', (job) => job.failed > 0 || job.state === 'refused'],
  ['done', 'Over', isOver],
];
const MOST = 1000;
const kept = { kind: 'all', text: '', columns: null, for: null };

export function Jobs({ page, again, limit, owner, more }) {
  const [kind, setKind] = useState(kept.kind);
  const [text, setText] = useState(kept.text);
  if (kept.for !== page.administrator) Object.assign(kept, { for: page.administrator, columns: columnsOf(page.administrator, again) });
  Object.assign(kept, { kind, text });
  const wanted = text.trim().toLowerCase();
  const named = wanted ? page.jobs.filter((job) => `${job.job} ${job.name} ${job.label || ''}`.toLowerCase().includes(wanted)) : page.jobs;
  const shown = named.filter(KINDS.find(([name]) => name === kind)[2]);
  return html`<div class="tools"><div role="group" aria-label="Which jobs">${KINDS.map(([name, word, fits]) => html`<button class="chip" aria-pressed=${kind === name}
      onClick=${() => setKind(name)}>${word} <span class="count">${number(named.filter(fits).length)}</span></button>`)}</div>
    <label>Find <input type="search" value=${text} onInput=${(event) => setText(event.target.value)} placeholder="name, label or id" /></label>
    ${page.administrator && html`<label>Of <select value=${owner} onChange=${(event) => more(limit, event.target.value)}><option value="">all users</option><option value="mine">me</option></select></label>`}
    <a class="button" href="#/submit">Submit …</a></div>
    <${Table} caption="Jobs" columns=${kept.columns} rows=${shown} id=${(job) => job.job}
      empty=${page.jobs.length ? 'No job fits.' : html`No job yet. <a href="#/submit">Submit</a> a file here, put one into ${visible(page.status.spool)}/inbox, or type <code>obatchctl submit FILE</code>`} />
    ${page.next && (limit < MOST ? html`<p><button onClick=${() => more(Math.min(MOST, limit * 4), owner)}>Show older jobs</button></p>`
      : html`<p class="quiet">Older ones: <code>obatchctl jobs --limit 10000</code></p>`)}`;
}
