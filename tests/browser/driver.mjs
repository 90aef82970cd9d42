// Drives one Chromium for the tests: a line of JSON in is {context?, code, given}, a line out {value} or {error}.
// `code` is the body of an async function of (page, given, at), where `at` has the browser, the context and what went wrong.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const [, , packages, chromium] = process.argv;
const require = createRequire(`${packages}/`);
const { chromium: kind } = require('playwright-core');
const AsyncFunction = (async () => {}).constructor;

// As Debian ships it, with the arguments that playwright gives, which leave web security as it is.
const browser = await kind.launch({ executablePath: chromium, args: ['--no-sandbox', '--js-flags=--expose-gc'] });
const at = { browser, axe: require.resolve('axe-core/axe.min.js'), context: null, page: null, trouble: [], asked: [] };

async function fresh(options) {
  await at.context?.close();
  delete at.cdp;
  at.context = await browser.newContext({ locale: 'en-US', timezoneId: 'UTC', viewport: { width: 1440, height: 900 }, ...options });
  at.trouble = [];
  at.asked = [];
  at.page = await at.tab();
}

/** A tab whose errors and calls are noted. */
at.tab = async () => {
  const page = await at.context.newPage();
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && at.trouble.push(`${message.type()}: ${message.text()} (${message.location().url})`));
  page.on('pageerror', (error) => at.trouble.push(`error: ${error.stack}`));
  page.on('request', (request) => at.asked.push(request.url()));
  return page;
};

for await (const line of createInterface({ input: process.stdin })) {
  const { context, code, given } = JSON.parse(line);
  let answer;
  try {
    if (context) await fresh(context);
    const found = code ? await new AsyncFunction('page', 'given', 'at', code)(at.page, given, at) : null;
    answer = { value: found ?? null };
  } catch (error) {
    answer = { error: String(error.stack || error) };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
await browser.close();
