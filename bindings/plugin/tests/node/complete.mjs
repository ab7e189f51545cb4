// Completes prompts with node-llama-cpp's prebuilt binaries, and writes the texts as JSON:
//
//     node complete.mjs FOLDER-OF-NODE_MODULES OUT '{"models": ["a.gguf", "b.gguf"], "prompts": ["..."], "gpu": false}'
//
// All models are loaded first. Each prompt is completed with each model, in turns.
import { createRequire } from "node:module";
import { writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, out, task] = process.argv.slice(2);
const { models, prompts, gpu } = JSON.parse(task);
const entry = createRequire(folder + "/").resolve("node-llama-cpp");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(entry));

const llama = await getLlama({ build: "never", gpu, logLevel: LlamaLogLevel.error, maxThreads: 1 });
const loaded = [];
for (const modelPath of models) {
    const model = await llama.loadModel({ modelPath });
    const context = await model.createContext({ contextSize: 256 });
    loaded.push({ model, sequence: context.getSequence() });
}
const texts = [];
for (const prompt of prompts) {
    for (const { model, sequence } of loaded) {
        await sequence.clearHistory();
        const tokens = [];
        for await (const token of sequence.evaluate(model.tokenize(prompt), { temperature: 0 })) {
            tokens.push(token);
            if (tokens.length === 16) break;
        }
        texts.push(model.detokenize(tokens));
    }
}
await llama.dispose();
writeFileSync(out, JSON.stringify(texts));
