// A webhook receiver: verifies signature and JWT, drops repeats, answers quickly. Needs Java 17 and nimbus-jose-jwt.
//
//   mvn dependency:copy-dependencies -DoutputDirectory=lib
//   CERT=cert.pem KEY=key.pem SECRET=whsec_… JWKS=jwks.json AUDIENCE=https://hooks.luma.example \
//       java -cp 'lib/*' Receiver.java
//
// SECRET or JWKS may be left out if the webhook has no signing secret or no JWT authentication. KEY is PKCS #8.
import com.nimbusds.jose.JOSEException;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.crypto.ECDSAVerifier;
import com.nimbusds.jose.jwk.JWK;
import com.nimbusds.jose.jwk.JWKSet;
import com.nimbusds.jose.util.JSONObjectUtils;
import com.nimbusds.jwt.JWTClaimsSet;
import com.nimbusds.jwt.SignedJWT;
import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpsConfigurator;
import com.sun.net.httpserver.HttpsServer;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.text.ParseException;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.Executors;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;

public class Receiver {
    static final int MAX_BODY = 1024 * 1024;
    static final int MAX_SEEN = 100_000;
    static final long TOLERANCE_S = 300;

    static final String SECRET = System.getenv("SECRET");
    static final String AUDIENCE = System.getenv("AUDIENCE");
    static final String ISSUER = System.getenv().getOrDefault("ISSUER", "feedback-dispatcher");
    static JWKSet keys;

    // In production: a table with a unique key, shared by all processes.
    static final Map<String, Boolean> SEEN = new LinkedHashMap<>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) {
            return size() > MAX_SEEN;
        }
    };

    static String signatureProblem(Headers headers, byte[] body) throws GeneralSecurityException {
        String id = headers.getFirst("webhook-id"), timestamp = headers.getFirst("webhook-timestamp");
        if (id == null || timestamp == null || !timestamp.matches("\\d{1,12}")) {
            return "webhook-id or webhook-timestamp is missing";
        }
        if (Math.abs(System.currentTimeMillis() / 1000 - Long.parseLong(timestamp)) > TOLERANCE_S) {
            return "the timestamp is too old or too new";
        }
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(Base64.getDecoder().decode(SECRET.replaceFirst("^whsec_", "")), "HmacSHA256"));
        mac.update((id + "." + timestamp + ".").getBytes(StandardCharsets.UTF_8));
        byte[] expected = Base64.getEncoder().encode(mac.doFinal(body));
        String signatures = headers.getFirst("webhook-signature");
        // During a rotation there are several signatures; one that fits is enough.
        for (String signature : (signatures == null ? "" : signatures).split(" ")) {
            if (signature.startsWith("v1,") && MessageDigest.isEqual(signature.substring(3).getBytes(StandardCharsets.UTF_8), expected)) {
                return null;
            }
        }
        return "no signature fits";
    }

    static String tokenProblem(Headers headers) throws JOSEException {
        String authorization = headers.getFirst("authorization");
        if (authorization == null || !authorization.startsWith("Bearer ")) {
            return "no bearer token";
        }
        try {
            SignedJWT token = SignedJWT.parse(authorization.substring("Bearer ".length()));
            JWK key = keys.getKeyByKeyId(token.getHeader().getKeyID());
            if (key == null || !JWSAlgorithm.ES256.equals(token.getHeader().getAlgorithm())) {
                return "unknown key or algorithm";
            }
            if (!token.verify(new ECDSAVerifier(key.toECKey()))) {
                return "the token's signature is wrong";
            }
            JWTClaimsSet claims = token.getJWTClaimsSet();
            long now = System.currentTimeMillis();
            if (claims.getExpirationTime() == null || claims.getExpirationTime().getTime() <= now - 10_000) {
                return "the token is expired";
            }
            if (!ISSUER.equals(claims.getIssuer()) || !claims.getAudience().contains(AUDIENCE)) {
                return "the token is for another receiver";
            }
            return null;
        } catch (ParseException error) {
            return "the token is not a JWT";
        }
    }

    static int handle(HttpExchange exchange) throws IOException, GeneralSecurityException, JOSEException, ParseException {
        byte[] body = exchange.getRequestBody().readNBytes(MAX_BODY + 1);
        if (body.length > MAX_BODY) {
            return 413;
        }
        Headers headers = exchange.getRequestHeaders();
        String problem = SECRET == null ? null : signatureProblem(headers, body);
        if (problem == null && keys != null) {
            problem = tokenProblem(headers);
        }
        if (problem != null) {
            System.out.println("refused: " + problem);
            return 401;
        }
        Map<String, Object> event = JSONObjectUtils.parse(new String(body, StandardCharsets.UTF_8));
        String id = headers.getFirst("webhook-id");
        boolean isNew;
        synchronized (SEEN) {
            isNew = SEEN.put(id, true) == null;
        }
        if (isNew) { // in production: put the event into a queue
            Map<String, Object> feedback = JSONObjectUtils.getJSONObject(event, "messageDeliveryFeedback");
            Object status = JSONObjectUtils.getJSONObject(feedback, "feedbackStatus").get("value");
            System.out.println("event " + id + " " + event.get("channel") + " " + status);
        } else {
            System.out.println("repeat " + id);
        }
        return 204;
    }

    static SSLContext tls(Path cert, Path key) throws GeneralSecurityException, IOException {
        Certificate[] chain = CertificateFactory.getInstance("X.509")
            .generateCertificates(new ByteArrayInputStream(Files.readAllBytes(cert))).toArray(Certificate[]::new);
        String pem = Files.readString(key).replaceAll("-----[A-Z ]+-----|\\s", "");
        PKCS8EncodedKeySpec spec = new PKCS8EncodedKeySpec(Base64.getDecoder().decode(pem));
        PrivateKey privateKey = KeyFactory.getInstance(chain[0].getPublicKey().getAlgorithm()).generatePrivate(spec);
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        store.setKeyEntry("server", privateKey, new char[0], chain);
        KeyManagerFactory managers = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        managers.init(store, new char[0]);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(managers.getKeyManagers(), null, null);
        return context;
    }

    public static void main(String[] arguments) throws Exception {
        if (System.getenv("JWKS") != null) {
            keys = JWKSet.load(new File(System.getenv("JWKS")));
        }
        int port = Integer.parseInt(System.getenv().getOrDefault("PORT", "8443"));
        HttpsServer server = HttpsServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.setHttpsConfigurator(new HttpsConfigurator(tls(Path.of(System.getenv("CERT")), Path.of(System.getenv("KEY")))));
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            int status = 400;
            try {
                status = handle(exchange);
            } catch (GeneralSecurityException | JOSEException | ParseException | IllegalArgumentException error) {
                System.out.println("refused: " + error.getMessage());
            }
            exchange.sendResponseHeaders(status, -1);
            exchange.close();
        });
        server.start();
        System.out.println("ready");
    }
}
