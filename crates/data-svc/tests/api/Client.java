// Registers, reads, replaces and deletes users by Java's own HTTP client, which asks each plain HTTP server for an
// upgrade to HTTP/2 and keeps connections: user-svc and data-svc in turns, for 100 users.
// Usage: java Client.java URL-OF-USER-SVC URL-OF-DATA-SVC

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;

class Client {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    public static void main(String[] urls) throws Exception {
        for (int number = 0; number < 100; number++) {
            String name = "java-" + number;
            String user = "/user/" + name;
            send(201, "POST", urls[0] + "/register", BodyPublishers.ofString("{\"name\":\"" + name + "\",\"info\":\"i\"}"));
            for (int round = 0; round < 3; round++) {
                send(200, "PUT", urls[0] + user, BodyPublishers.ofString("{\"info\":\"" + round + "\"}"));
                send(200, "PUT", urls[0] + user, BodyPublishers.ofString("{\"info\":\"new\"}"));
                send(200, "GET", urls[1] + user, BodyPublishers.noBody());
                send(200, "GET", urls[1] + user, BodyPublishers.noBody());
            }
            send(204, "DELETE", urls[0] + user, BodyPublishers.noBody());
            send(404, "GET", urls[1] + user, BodyPublishers.noBody());
        }
    }

    private static void send(int expected, String method, String url, BodyPublisher body) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url))
                .timeout(Duration.ofSeconds(10))
                .header("Content-Type", "application/json")
                .method(method, body)
                .build();
        int status = CLIENT.send(request, BodyHandlers.ofString()).statusCode();
        if (status != expected) {
            throw new IllegalStateException(method + " " + url + ": " + status + " instead of " + expected);
        }
    }
}
