// What both Node clients share: facts printed one a line, waiting with an end.
const patienceMs = 15_000;
let failed = 0;

export async function check(name, test) {
  try {
    await test();
    console.log(`ok   ${name}`);
  } catch (wrong) {
    failed += 1;
    console.log(`FAIL ${name}: ${String(wrong.message ?? wrong).split('\n')[0]}`);
  }
}

export const finish = () => process.exit(failed ? 1 : 0);

// Resolves when `condition` holds; looked at whenever something happened and every few milliseconds.
export async function until(what, condition) {
  const end = Date.now() + patienceMs;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`${what}: not within ${patienceMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export function equal(actual, expected, what) {
  const [left, right] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (left !== right) throw new Error(`${what}: ${left} is not ${right}`);
}

export async function rest(node, method, path, body) {
  const answer = await fetch(`${node}/api/realtime${path}`, {
    method,
    headers: { 'X-API-Key': process.env.API_KEY, 'Content-Type': 'application/json' },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
  return answer.status === 204 ? null : answer.json();
}

export const nodes = process.env.NODES.split(',');
export const node = (index) => nodes[index % nodes.length];
export const tokens = { alice: process.env.TOKEN_ALICE, bob: process.env.TOKEN_BOB, carol: process.env.TOKEN_CAROL };
