// A webhook receiver: verifies signature and JWT, drops repeats, answers quickly. Needs Node.js 18 and no package.
//
//   CERT=cert.pem KEY=key.pem SECRET=whsec_… JWKS=jwks.json AUDIENCE=https://hooks.luma.example node receiver.mjs
//
// SECRET or JWKS may be left out if the webhook has no signing secret or no JWT authentication.
import { createHmac, createPublicKey, timingSafeEqual, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";

const { SECRET, JWKS, AUDIENCE, ISSUER = "feedback-dispatcher", PORT = "8443" } = process.env;
const keys = JWKS ? JSON.parse(readFileSync(JWKS, "utf8")).keys : null;
const MAX_BODY = 1024 * 1024, MAX_SEEN = 100_000, TOLERANCE_S = 300;
const seen = new Set(); // in production: a table with a unique key, shared by all processes

function signatureProblem(headers, body) {
  const id = headers["webhook-id"], timestamp = headers["webhook-timestamp"];
  if (!id || !/^\d+$/.test(timestamp ?? "")) return "webhook-id or webhook-timestamp is missing";
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE_S) return "the timestamp is too old or too new";
  const key = Buffer.from(SECRET.replace(/^whsec_/, ""), "base64");
  const expected = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest();
  // During a rotation there are several signatures; one that fits is enough.
  const fits = (headers["webhook-signature"] ?? "").split(" ").some((signature) => {
    const [version, value] = signature.split(",");
    const given = Buffer.from(value ?? "", "base64");
    return version === "v1" && given.length === expected.length && timingSafeEqual(given, expected);
  });
  return fits ? null : "no signature fits";
}

function tokenProblem(headers) {
  const [scheme, token = ""] = (headers.authorization ?? "").split(" ");
  const [head, claims, signature] = token.split(".");
  if (scheme !== "Bearer" || !signature) return "no bearer token";
  let header, payload;
  try {
    header = JSON.parse(Buffer.from(head, "base64url"));
    payload = JSON.parse(Buffer.from(claims, "base64url"));
  } catch {
    return "the token is not a JWT";
  }
  const jwk = keys.find((one) => one.kid === header.kid && one.kty === "EC");
  if (!jwk || header.alg !== "ES256") return "unknown key or algorithm";
  const key = { key: createPublicKey({ key: jwk, format: "jwk" }), dsaEncoding: "ieee-p1363" };
  if (!verify("sha256", Buffer.from(`${head}.${claims}`), key, Buffer.from(signature, "base64url"))) return "the token's signature is wrong";
  const now = Date.now() / 1000, audiences = [payload.aud].flat();
  if (!(payload.exp > now - 10) || payload.iat > now + 10) return "the token is expired or from the future";
  if (payload.iss !== ISSUER || !audiences.includes(AUDIENCE)) return "the token is for another receiver";
  return null;
}

function handle(request, body) {
  const problem = (SECRET && signatureProblem(request.headers, body)) || (keys && tokenProblem(request.headers));
  if (problem) {
    console.log(`refused: ${problem}`);
    return 401;
  }
  const id = request.headers["webhook-id"];
  if (seen.has(id)) {
    console.log(`repeat ${id}`);
    return 204;
  }
  const event = JSON.parse(body);
  console.log(`event ${id} ${event.channel} ${event.messageDeliveryFeedback.feedbackStatus.value}`); // in production: put it into a queue
  seen.add(id);
  if (seen.size > MAX_SEEN) seen.delete(seen.values().next().value);
  return 204;
}

const tls = { cert: readFileSync(process.env.CERT), key: readFileSync(process.env.KEY) };
createServer(tls, async (request, response) => {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MAX_BODY) return response.writeHead(413).end();
    chunks.push(chunk);
  }
  let status = 400;
  try {
    status = request.method === "POST" ? handle(request, Buffer.concat(chunks)) : 405;
  } catch (error) {
    console.log(`refused: ${error.message}`);
  }
  response.writeHead(status, { "content-length": "0" }).end();
}).listen(Number(PORT), "127.0.0.1", () => console.log("ready"));
