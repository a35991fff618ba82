import java.time.Duration;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** A member of a group with a protocol that aiokafka doesn't speak, until its standard input ends. */
public class Member {
    public static void main(String[] words) throws Exception {
        String protocol = words[0], topic = words[3];
        Properties settings = new Properties();
        settings.put("bootstrap.servers", words[1]);
        settings.put("group.id", words[2]);
        settings.put("client.id", "java-" + protocol);
        settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
        settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
        if (protocol.equals("share")) {
            try (KafkaShareConsumer<byte[], byte[]> consumer = new KafkaShareConsumer<>(settings)) {
                consumer.subscribe(List.of(topic));
                while (!hasEnded()) {
                    consumer.poll(Duration.ofMillis(200));
                }
            }
        } else {
            settings.put("group.protocol", protocol);
            try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings)) {
                consumer.subscribe(List.of(topic));
                while (!hasEnded()) {
                    consumer.poll(Duration.ofMillis(200));
                }
            }
        }
    }

    private static boolean hasEnded() throws Exception {
        return System.in.available() > 0;
    }
}
