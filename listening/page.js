"use strict";
// The script of a listening test. jsPsych runs the trials; the plug-in ListeningTrial below is one of them.
const experiment = JSON.parse(document.getElementById("experiment").textContent);
const names = Object.keys(experiment.conditions);
const STORE = `listening test ${experiment.version}`;
const byId = (id) => document.getElementById(id);
const player = byId("player"); // one element for all sounds: phones let it play after the first tap
const jsPsych = initJsPsych({
  display_element: "screen",
  override_safe_mode: true, // sounds are data URIs, so the file protocol takes nothing away
  on_trial_start: () => { byId("screen").tabIndex = -1; }, // jsPsych puts its frame into the tab order
});

// ---- The answers, which stay in the browser until they are saved
let state = null; // {participant, rows: lists of strings, plays: of the open trial, saved}
try { state = JSON.parse(localStorage.getItem(STORE)); } catch { /* keep() says so */ }

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    warn("This browser cannot keep your answers. Do not close or reload this page before you have saved them.");
  }
}

function warn(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = false;
}

function crc32(text) {
  let crc = -1;
  for (const byte of new TextEncoder().encode(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
  }
  return (~crc >>> 0).toString(16).padStart(8, "0");
}

// Each row ends with a check of itself and of the row before, so that changed, removed and moved rows are noticed.
function record(trial, answer) {
  const right = experiment.classes[trial.label], choice = experiment.classes[answer.choice];
  const values = {
    participant: state.participant, source: "person", trial: state.rows.length + 1, block: trial.block,
    phase: trial.phase, encoding: trial.encoding, dataset: experiment.dataset, index: trial.index, sha256: trial.sha256,
    class: right, choice, correct: Number(choice === right), response_ms: answer.response_ms,
    replays: answer.plays - 1, page_version: experiment.version,
  };
  const row = experiment.columns.slice(0, -1).map((column) => String(values[column]));
  const before = state.rows.length ? state.rows.at(-1).at(-1) : "";
  row.push(crc32([before, ...row].join("\t")));
  state.rows.push(row);
  state.plays = 0;
  keep();
  showProgress();
}

function answersFile() {
  const cell = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return [experiment.columns, ...state.rows].map((row) => row.map(cell).join(",") + "\n").join("");
}

// ---- The order of the sounds: by the seed and the participant's number alone
function blockOrder(participant) {
  // A Williams design: in any 2 * blocks participants, each encoding has each place and each predecessor equally often.
  const count = names.length, turn = (participant - 1) % (2 * count);
  const order = names.map((_, k) => ((k % 2 ? (k + 1) / 2 : count - k / 2) + turn) % count);
  return (turn < count ? order : order.reverse()).map((k) => names[k]);
}

function plan(participant) {
  jsPsych.randomization.setSeed(`${experiment.seed} ${participant}`);
  const trials = [];
  blockOrder(participant).forEach((encoding, block) => {
    for (const phase of ["practice", "test"]) {
      const own = experiment.stimuli.filter((one) => one.encoding === encoding && one.phase === phase);
      const order = jsPsych.randomization.shuffle(own);
      order.forEach((one, position) => trials.push({ ...one, block: block + 1, position: position + 1, of: own.length }));
    }
  });
  return trials;
}

// ---- One trial. jsPsych's own audio plug-ins start the sound while a screen reader speaks, cannot play it again, and
// leave the keys to the screen reader. Here the participant starts the sound, and the role `application` passes the keys.
class ListeningTrial {
  static info = {
    name: "listening-trial",
    version: "1.0.0",
    parameters: {
      title: { type: jsPsychModule.ParameterType.STRING },
      sound: { type: jsPsychModule.ParameterType.STRING },
      choices: { type: jsPsychModule.ParameterType.STRING, array: true },
      keys: { type: jsPsychModule.ParameterType.STRING, array: true },
      hint: { type: jsPsychModule.ParameterType.STRING, default: "Press space to listen. You may pause first." },
      question: { type: jsPsychModule.ParameterType.STRING },
      right: { type: jsPsychModule.ParameterType.INT, default: null }, // the right choice, where feedback is wanted
      plays: { type: jsPsychModule.ParameterType.INT, default: 0 }, // before a reload
      on_play: { type: jsPsychModule.ParameterType.FUNCTION, default: () => {} },
      on_answer: { type: jsPsychModule.ParameterType.FUNCTION, default: () => {} },
    },
    data: {
      choice: { type: jsPsychModule.ParameterType.INT },
      response_ms: { type: jsPsychModule.ParameterType.INT }, // from the start of the first play
      plays: { type: jsPsychModule.ParameterType.INT },
    },
  };

  constructor(jsPsych) { this.jsPsych = jsPsych; }

  trial(display, trial) {
    display.innerHTML = `<div role="application" tabindex="-1" aria-labelledby="title" aria-describedby="status">
      <h2 id="title"></h2><button class="play main">Listen <span aria-hidden="true">(space)</span></button>
      <p id="status" role="status"></p><div class="choices"></div></div>`;
    const area = display.firstChild, listen = area.querySelector(".play");
    const status = area.querySelector("#status"), choices = area.querySelector(".choices");
    let plays = trial.plays, started = null, answer = null;
    area.querySelector("#title").textContent = trial.title;
    status.textContent = trial.hint;
    choices.classList.toggle("short", Math.max(...trial.choices.map((name) => name.length)) < 4);
    trial.choices.forEach((name, choice) => {
      const button = document.createElement("button"), key = trial.keys[choice];
      button.textContent = name;
      if (key !== name.toLowerCase()) button.insertAdjacentHTML("afterbegin", `<kbd>${key}</kbd>`);
      button.disabled = true;
      button.addEventListener("click", () => choose(choice));
      choices.append(button);
    });

    const play = () => {
      if (player.src === trial.sound && !player.paused && !player.ended) return;
      player.src = trial.sound;
      player.play().then(() => {
        if (answer !== null) return;
        started ??= performance.now();
        plays += 1;
        trial.on_play(plays);
        choices.querySelectorAll("button").forEach((button) => { button.disabled = false; });
        status.removeAttribute("role"); // a screen reader must not speak into the sound
        status.textContent = trial.question;
      }).catch((error) => {
        if (error.name !== "AbortError") warn(`The sound could not be played (${error.message}).`);
      });
    };
    const choose = (choice) => {
      if (started === null || answer !== null) return;
      answer = { choice, response_ms: Math.round(performance.now() - started), plays };
      player.pause();
      trial.on_answer(answer);
      if (trial.right === null) return end();
      const name = trial.choices[trial.right], right = choice === trial.right;
      status.setAttribute("role", "status");
      status.className = right ? "right" : "wrong";
      status.textContent = right ? `Right, it was ${name}.` : `It was ${name}. You chose ${trial.choices[choice]}.`;
      choices.replaceChildren();
      listen.textContent = "Listen again";
      listen.classList.remove("main");
      const next = Object.assign(document.createElement("button"), { className: "main play", textContent: "Next" });
      next.addEventListener("click", end);
      choices.replaceWith(next);
      next.focus();
    };
    const onKey = (event) => {
      if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || answer !== null) return;
      if (event.target.tagName === "BUTTON" && [" ", "Enter"].includes(event.key)) return; // the browser presses it
      if (event.key === " ") {
        event.preventDefault();
        play();
      }
      const choice = trial.keys.indexOf(event.key.toLowerCase());
      if (choice >= 0) choose(choice);
    };
    const end = () => {
      player.pause();
      document.removeEventListener("keydown", onKey);
      this.jsPsych.finishTrial(answer);
    };
    listen.addEventListener("click", play);
    document.addEventListener("keydown", onKey); // anywhere on the page: jsPsych hears keys in its frame alone
    setTimeout(() => area.focus()); // after jsPsych has focused its frame
  }
}

// ---- The course of the test
function timeline(participant) {
  const trials = plan(participant), done = state.rows.length, blocks = names.length;
  const screen = (title, text, button = "Begin") => ({
    type: jsPsychHtmlButtonResponse,
    stimulus: `<h2 tabindex="-1">${title}</h2>${text.map((line) => `<p>${line}</p>`).join("")}`,
    choices: [button],
    button_html: (choice) => `<button class="main">${choice}</button>`,
    on_load: () => setTimeout(() => byId("screen").querySelector("h2").focus()),
  });
  const nodes = [{
    type: ListeningTrial, title: "Volume check", sound: trials[0].sound, choices: ["I hear it well"], keys: ["enter"],
    hint: "Press space to listen. Set the volume until the sound is clear and pleasant.",
    question: "Listen as often as you like. When you hear it well, press Enter.",
  }];
  trials.slice(done).forEach((trial, k) => {
    const before = k ? trials[done + k - 1] : {}, part = blocks > 1 ? `Part ${trial.block} of ${blocks}: ` : "";
    if (trial.block !== before.block || trial.phase !== before.phase) {
      const practice = trial.phase === "practice", left = trial.of - trial.position + 1;
      nodes.push(screen(`${part}${trial.phase}`, [
        ...(practice || !k ? [experiment.descriptions[trial.encoding]] : []),
        practice ? `You now practise with ${left} sounds. After each answer you learn what it was.`
          : `The practice is over. Now come ${left} sounds, and you are not told what they were. If you are not sure, guess.`,
        "Press space to listen, as often as you like. Answer with a key or a button. The choices are: "
          + experiment.classes.map(choiceText).join(", ") + ".",
        "You may pause before each sound.",
      ]));
    }
    nodes.push({
      type: ListeningTrial, title: `${part}${trial.phase}, sound ${trial.position} of ${trial.of}`, sound: trial.sound,
      choices: experiment.classes, keys: experiment.keys, question: "What was it? Answer, or press space to listen again.",
      right: trial.phase === "practice" ? trial.label : null,
      plays: k ? 0 : state.plays,
      on_play: (plays) => { state.plays = plays; keep(); },
      on_answer: (answer) => record(trial, answer),
    });
  });
  return nodes;
}

function choiceText(name, k) {
  const escaped = name.replaceAll("&", "&amp;").replaceAll("<", "&lt;"), key = experiment.keys[k];
  return key === name.toLowerCase() ? escaped : `${key} for ${escaped}`;
}

function showProgress() {
  const bar = byId("progress").firstChild;
  bar.max = experiment.stimuli.length;
  bar.value = state.rows.length;
}

function show(id) {
  for (const one of ["start", "again", "end"]) byId(one).hidden = one !== id;
  byId("progress").hidden = id !== "";
  (document.querySelector(`#${id || "none"} h2`) ?? document.querySelector("h1")).focus();
}

async function runTest() {
  show("");
  showProgress();
  await jsPsych.run(timeline(state.participant));
  byId("screen").hidden = true;
  finish();
}

function finish() {
  const missing = experiment.stimuli.length - state.rows.length;
  byId("end-text").textContent = missing
    ? `You stopped before the end. ${missing} sounds were not answered.` : "You have answered all sounds.";
  byId("erase").disabled = !state.saved;
  show("end");
}

byId("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  state = { participant: Number(byId("number").value), rows: [], plays: 0, saved: false };
  keep();
  runTest();
});
byId("continue").addEventListener("click", runTest);
byId("stop").addEventListener("click", finish);
byId("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([answersFile()], { type: "text/csv" }));
  link.download = `listening_${experiment.version}_person_${String(state.participant).padStart(3, "0")}.csv`;
  link.click();
  state.saved = true;
  keep();
  byId("erase").disabled = false;
  byId("saved").textContent = `The file ${link.download} was saved. Look for it among your downloads.`;
});
byId("erase").addEventListener("click", () => {
  localStorage.removeItem(STORE);
  location.reload();
});

if (!state) show("start");
else if (state.rows.length === experiment.stimuli.length) finish();
else {
  byId("again-text").textContent =
    `Participant ${state.participant} has answered ${state.rows.length} of ${experiment.stimuli.length} sounds here.`;
  show("again");
}
