// The way to the daemon: its session, its live messages, what is asked of it; and how that way is mended.
//
//   login ──token──▶ connecting ──first status──▶ live ──silence, break──▶ lost ──after a pause──▶ connecting
//     ▲                  └── 401: the session is over (a daemon that starts again knows none) ──┐
//     └─────────────────────────────────────────────────────────────────────────────────────────┘

const SILENCE_MS = 6000; // a status comes every second
const ANSWER_MS = 10_000;
const ACTION_MS = 120_000; // a reload may restart interfaces
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
// The session's cookie is hidden from scripts; this says whether to ask for one. It keeps a first visit quiet.
const MARK = "tapotun-logged-in";
const POLICY_VIOLATION = 1008; // how the daemon closes what belongs to a session that is over
// A browser does not tell scripts how a WebSocket was refused.
const NOT_LIVE =
  "it answers, but not on /api/live: a proxy must pass Host, Upgrade and Connection on; or 16 panels are open already";

/** What the daemon, or the way to it, has refused; its message is for the operator. */
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/**
 * `on.state(link)` is called whenever something of this changed, `on.status(message)` and `on.events(message)` with
 * what the daemon tells.
 */
export class Link {
  state = "login"; // login, connecting, live, lost
  why = ""; // of login and lost
  lostAt = null; // ms of this machine's clock: when the daemon was heard last
  nextTryAt = null; // ms, likewise
  session = null; // {csrf, name, version, pid}
  #on;
  #socket = null;
  #heard = 0; // performance.now()
  #pause = FIRST_PAUSE_MS;
  #timer = null;
  #fresh = false; // just logged in
  #attempt = 0; // an older attempt that answers late is not listened to

  constructor(on) {
    this.#on = on;
    setInterval(() => this.#watch(), 1000);
    addEventListener("online", () => this.retry());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.retry();
    });
  }

  /** Go on with the session that this browser may have, or show the login. */
  start() {
    if (localStorage.getItem(MARK) === null) this.#to("login", "");
    else this.#connect();
  }

  /** Raises Refused. */
  async login(token) {
    await ask("POST", "api/login", { body: { token } });
    localStorage.setItem(MARK, "yes");
    this.#fresh = true;
    this.#connect();
  }

  /** The page is as new afterwards, and holds nothing of what it has shown. Raises Refused: the session goes on. */
  async logout() {
    await this.act("api/logout").catch((error) => {
      if (error.status !== 401) throw error;
    });
    localStorage.removeItem(MARK);
    location.reload();
  }

  /** Have the daemon do something; its answer. Raises Refused. */
  async act(path, body = {}) {
    try {
      return await ask("POST", path, { body, csrf: this.session?.csrf, timeout: ACTION_MS });
    } catch (error) {
      if (error.status === 401) this.#over();
      throw error;
    }
  }

  /** Do not wait for the next try. */
  retry() {
    if (this.state === "lost") this.#connect();
  }

  async #connect() {
    const attempt = this.#begin();
    if (this.state === "login") this.#to("connecting", "");
    this.nextTryAt = null;
    try {
      const session = await ask("GET", "api/session");
      if (attempt !== this.#attempt) return;
      this.session = session;
      this.#fresh = false;
    } catch (error) {
      if (attempt !== this.#attempt) return;
      if (error.status === 401) this.#over();
      else this.#lose(error.message);
      return;
    }
    const url = new URL("api/live", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    this.#socket = socket;
    this.#heard = performance.now();
    let talks = false;
    socket.addEventListener("message", (event) => {
      if (attempt !== this.#attempt) return;
      talks = true;
      this.#receive(event.data);
    });
    socket.addEventListener("close", (event) => {
      if (attempt !== this.#attempt) return;
      if (talks && event.code === POLICY_VIOLATION) this.#connect();
      else this.#lose(talks ? "the connection ended" : NOT_LIVE);
    });
  }

  #begin() {
    clearTimeout(this.#timer);
    this.#attempt += 1;
    this.#socket?.close();
    this.#socket = null;
    return this.#attempt;
  }

  #receive(text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      this.#begin();
      this.#lose("the daemon sent something that is no message");
      return;
    }
    this.#heard = performance.now();
    if (message.type === "events") this.#on.events(message);
    if (message.type !== "status") return;
    this.#pause = FIRST_PAUSE_MS;
    this.#on.status(message);
    if (this.state !== "live") {
      this.lostAt = null;
      this.#to("live", "");
    }
  }

  // A connection may die without a word, and so may a daemon that is stopped or hangs.
  #watch() {
    if (this.#socket !== null && performance.now() - this.#heard > SILENCE_MS) {
      this.#begin();
      this.#lose("the daemon says nothing any more");
    }
  }

  #lose(why) {
    this.#begin();
    const wait = this.#pause * (0.8 + 0.4 * Math.random());
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE_MS);
    this.lostAt ??= Date.now();
    this.nextTryAt = Date.now() + wait;
    this.#timer = setTimeout(() => this.#connect(), wait);
    this.#to("lost", why);
  }

  #over() {
    this.#begin();
    let why = this.session === null ? "" : "The session is over, or the daemon was started again. Log in to go on.";
    if (this.#fresh) why = "The token was right, but this browser has not kept the session's cookie.";
    this.#fresh = false;
    localStorage.removeItem(MARK);
    this.session = null;
    this.lostAt = null;
    this.#pause = FIRST_PAUSE_MS;
    this.#to("login", why);
  }

  #to(state, why) {
    this.state = state;
    this.why = why;
    this.#on.state(this);
  }
}

async function ask(method, path, { body = null, csrf = null, timeout = ANSWER_MS } = {}) {
  const headers = {};
  if (body !== null) headers["Content-Type"] = "application/json";
  if (csrf) headers["X-CSRF-Token"] = csrf;
  let answer;
  let text;
  try {
    answer = await fetch(new URL(path, document.baseURI), {
      method,
      headers,
      body: body === null ? null : JSON.stringify(body),
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(timeout),
    });
    text = await answer.text();
  } catch {
    throw new Refused("the daemon does not answer");
  }
  let content = null;
  try {
    content = text === "" ? null : JSON.parse(text);
  } catch {
    // Not ours: a proxy's page, whose status says enough.
  }
  if (answer.ok) return content;
  const pause = answer.status === 429 ? answer.headers.get("Retry-After") : null;
  const told = typeof content?.error === "string";
  const said = told ? content.error : `the answer was ${answer.status} ${answer.statusText}`.trim();
  throw new Refused(pause === null || said.includes(pause) ? said : `${said}; try again in ${pause} s`, answer.status);
}
