// Completes prompts with node-llama-cpp's prebuilt binaries, and writes the texts and what else was seen as JSON:
//
//     node complete.mjs FOLDER-OF-NODE_MODULES OUT '{"models": ["a.gguf", "b.gguf"], "prompts": ["..."], "gpu": false}'
//
// All models are loaded first. Each prompt is completed with each model, in turns. With "draft", a model drafts for
// the first one. "changes" has a request to the plugin's interface on "port" for each prompt, made before it, or null.
import { createRequire } from "node:module";
import { writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, out, task] = process.argv.slice(2);
const { models, prompts, gpu, draft, port, changes = [] } = JSON.parse(task);
const entry = createRequire(folder + "/").resolve("node-llama-cpp");
const { getLlama, LlamaLogLevel, DraftSequenceTokenPredictor } = await import(pathToFileURL(entry));

const llama = await getLlama({ build: "never", gpu, logLevel: LlamaLogLevel.error, maxThreads: 1 });
async function load(modelPath, options) {
    const model = await llama.loadModel({ modelPath });
    const context = await model.createContext({ contextSize: 256 });
    return { model, sequence: context.getSequence(options) };
}
const drafts = draft ? await load(draft) : undefined;
const loaded = [];
for (const modelPath of models) {
    const predicts = drafts && loaded.length === 0;
    const options = predicts ? { tokenPredictor: new DraftSequenceTokenPredictor(drafts.sequence, { minTokens: 2, maxTokens: 4, minConfidence: 0 }) } : undefined;
    loaded.push(await load(modelPath, options));
}
const seen = { texts: [], answers: [] };
for (const [index, prompt] of prompts.entries()) {
    if (changes[index]) {
        const answer = await fetch(`http://127.0.0.1:${port}/caps`, { method: "PUT", body: JSON.stringify(changes[index]) });
        seen.answers.push({ status: answer.status, body: await answer.json() });
    }
    for (const { model, sequence } of loaded) {
        await sequence.clearHistory();
        const tokens = [];
        for await (const token of sequence.evaluate(model.tokenize(prompt), { temperature: 0 })) {
            tokens.push(token);
            if (tokens.length === 16) break;
        }
        seen.texts.push(model.detokenize(tokens));
    }
}
if (port) {
    seen.metrics = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
}
seen.predictions = loaded[0].sequence.tokenPredictions;
await llama.dispose();
writeFileSync(out, JSON.stringify(seen));
