-- Rows as the package of schema version 1 wrote them: submissions and shards in every state. Frozen.

INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('156caa1080dc4262947436715c607f55', 'prod', 'tickets', '2026-01-01', '54a2d56f6368fc22d44a31d63b2b5a03', '2067328fa4f961057b7c240a2bd3e817', 1, 'command', 'the labeler', 'shouter', 3, 3, 0, 1, 'settled', 'prod/tickets/2026-01-01/156caa1080dc4262947436715c607f55/manifest.parquet', '0', '0', '0E-12', 'free', '{"succeeded": 3}', '2026-11-24 19:22:54.905208', '2026-11-24 19:22:55.037222', '2026-11-24 19:22:55.044104', 'run-1', '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('22eba4b0127a410aa3b23f9ee20a1d22', 'prod', 'tickets', '2026-01-02', '3eb62414856a8bcd0240f31cce28ed16', '2067328fa4f961057b7c240a2bd3e817', 1, 'command', 'the labeler', 'shouter', 3, 3, 0, 1, 'settled', 'prod/tickets/2026-01-02/22eba4b0127a410aa3b23f9ee20a1d22/manifest.parquet', '0', '0', '0E-12', 'free', '{"succeeded": 3}', '2026-11-24 19:22:55.049765', '2026-11-24 19:22:55.161442', NULL, 'run-2', '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('c3511341a5e24764b43c33f7909f4fd8', 'prod', 'tickets', '2026-01-03', '3e8ffaef48282c7da2ab138bcd8a542e', '2067328fa4f961057b7c240a2bd3e817', 1, 'command', 'the labeler', 'shouter', 3, 3, 0, 1, 'open', 'prod/tickets/2026-01-03/c3511341a5e24764b43c33f7909f4fd8/manifest.parquet', '0', NULL, NULL, 'free', '{}', '2026-11-24 19:22:55.171885', NULL, NULL, 'run-3', '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('0f3321169ac54a449e0bf3cd4bdb6142', 'prod', 'tickets', '2026-01-04', '9456d5e668a45e574442e29b48a629db', '2067328fa4f961057b7c240a2bd3e817', 1, 'command', 'the labeler', 'shouter', 3, 3, 0, 1, 'open', 'prod/tickets/2026-01-04/0f3321169ac54a449e0bf3cd4bdb6142/manifest.parquet', '0', NULL, NULL, 'free', '{}', '2026-11-24 19:22:55.314558', NULL, NULL, 'run-4', '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('babd619994ee43e5b4a84c516ff9c9e5', 'prod', 'tickets', '2026-01-05', 'aa75896b18de9f69f1d8ae8d1ac952b4', '2067328fa4f961057b7c240a2bd3e817', 1, 'command', 'the labeler', 'shouter', 3, 3, 0, 1, 'open', 'prod/tickets/2026-01-05/babd619994ee43e5b4a84c516ff9c9e5/manifest.parquet', '0', NULL, NULL, 'free', '{}', '2026-11-24 19:22:55.419766', NULL, NULL, 'run-5', '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('e5ccd74beafd4b168b1ea287ebdf57bb', 'prod', 'tickets', '2026-01-06', '67b358bc4076d1c74e64bcfbec4c8544', '2067328fa4f961057b7c240a2bd3e817', 1, 'command', 'the labeler', 'shouter', 3, 3, 0, 1, 'canceled', 'prod/tickets/2026-01-06/e5ccd74beafd4b168b1ea287ebdf57bb/manifest.parquet', '0', NULL, NULL, 'free', '{}', '2026-11-24 19:22:55.425789', NULL, NULL, 'run-6', '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('ee730a5f59b84ca0b9ef5cd9b246f1b7', 'prod', 'tickets', '2026-01-06', 'bd4701e7d37b1ec2a260fc877d4f0253', '2067328fa4f961057b7c240a2bd3e817', 1, 'command', 'the labeler', 'shouter', 4, 4, 0, 1, 'open', 'prod/tickets/2026-01-06/ee730a5f59b84ca0b9ef5cd9b246f1b7/manifest.parquet', '0', NULL, NULL, 'free', '{}', '2026-11-24 19:22:55.531911', NULL, NULL, 'run-7', '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', 'prod', 'two_waves', '', '32b20988ac9b7ff9a780240302867550', 'ed7a138fd30290e7dd8d7a1ce83d6948', 1, 'openai', 'api.openai.com/v1', 'gpt-4o', 4, 4, 0, 2, 'settled', 'prod/two_waves/_/fa2645765a4a4aeabd0c62b9b6325648/manifest.parquet', '0.00538500', '0.00022500', '0.000450000000', 'batch', '{"succeeded": 4}', '2026-11-24 19:22:55.568333', '2026-11-24 19:22:56.234496', NULL, NULL, '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('fd14042ccb5b4b19a91921fd83651e4e', 'prod', 'with_rejects', '', '3ab2904863f8749ea7e4cae28222465c', 'ed7a138fd30290e7dd8d7a1ce83d6948', 1, 'openai', 'api.openai.com/v1', 'gpt-4o', 4, 4, 0, 1, 'settled', 'prod/with_rejects/_/fd14042ccb5b4b19a91921fd83651e4e/manifest.parquet', '0.00538500', '0.00018750', '0.000375000000', 'batch', '{"errored": 1, "succeeded": 3}', '2026-11-24 19:22:56.246418', '2026-11-24 19:22:56.286869', NULL, NULL, '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', 'prod', 'in_second_wave', '', 'e68440d725f4546b78708e08f53c789e', 'ed7a138fd30290e7dd8d7a1ce83d6948', 1, 'openai', 'api.openai.com/v1', 'gpt-4o', 4, 4, 0, 2, 'open', 'prod/in_second_wave/_/19c073b0ea1d491bab0412cfd3e565f3/manifest.parquet', '0.00539000', NULL, NULL, 'batch', '{}', '2026-11-24 19:22:56.304509', NULL, NULL, NULL, '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('83ce490bd82b4ec4ab44d60f530da681', 'prod', 'lost_reply', '', '90514b4c3d3ce797dc7d940253fdb1b4', 'ed7a138fd30290e7dd8d7a1ce83d6948', 1, 'openai', 'api.openai.com/v1', 'gpt-4o', 4, 4, 0, 1, 'open', 'prod/lost_reply/_/83ce490bd82b4ec4ab44d60f530da681/manifest.parquet', '0.00538500', NULL, NULL, 'batch', '{}', '2026-11-24 19:22:56.367993', NULL, NULL, NULL, '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('b1377acd50a54233b6691c9bfcc370aa', 'prod', 'refused', '', '790c3281fa999caa5d66fceb450a6695', 'ed7a138fd30290e7dd8d7a1ce83d6948', 1, 'openai', 'api.openai.com/v1', 'gpt-4o', 4, 4, 0, 1, 'open', 'prod/refused/_/b1377acd50a54233b6691c9bfcc370aa/manifest.parquet', '0.00538000', NULL, NULL, 'batch', '{}', '2026-11-24 19:22:56.393739', NULL, NULL, NULL, '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('2318b9a82b254fcfaaf40ce28e4fa099', 'prod', 'expired', '', '102285221e3d40691fb1fb3cac5e9d3b', 'ed7a138fd30290e7dd8d7a1ce83d6948', 1, 'openai', 'api.openai.com/v1', 'gpt-4o', 4, 4, 0, 1, 'open', 'prod/expired/_/2318b9a82b254fcfaaf40ce28e4fa099/manifest.parquet', '0.00538000', NULL, NULL, 'batch', '{}', '2026-11-24 19:22:56.415932', NULL, NULL, NULL, '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('98c47196bc8b4b24b63a6cfa90dbc168', 'prod', 'canceled', '', '3fcd79d9daab290dbde098b2d5c3bf01', 'ed7a138fd30290e7dd8d7a1ce83d6948', 1, 'openai', 'api.openai.com/v1', 'gpt-4o', 4, 4, 0, 1, 'open', 'prod/canceled/_/98c47196bc8b4b24b63a6cfa90dbc168/manifest.parquet', '0.00538000', NULL, NULL, 'batch', '{}', '2026-11-24 19:22:56.441264', NULL, NULL, NULL, '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('77d53de1ec554ee5ac8587d4e7c8752b', 'prod', 'failed', '', 'b5d2dcb164d180c6f259e4bc790414cc', 'ed7a138fd30290e7dd8d7a1ce83d6948', 1, 'openai', 'api.openai.com/v1', 'gpt-4o', 4, 4, 0, 1, 'open', 'prod/failed/_/77d53de1ec554ee5ac8587d4e7c8752b/manifest.parquet', '0.00538000', NULL, NULL, 'batch', '{}', '2026-11-24 19:22:56.466085', NULL, NULL, NULL, '[]');
INSERT INTO submission (submission_id, namespace, asset, partition, fingerprint, config_fingerprint, attempt, provider, account, model, rows, requests, reused, waves, state, manifest_path, estimated_usd, cost_usd, realtime_usd, price_basis, outcomes, created_at, settled_at, delivered_at, run_id, reused_from) VALUES
('c12246fa4411442ea521809635248209', 'prod', 'budgeted', '', '497ea83b775b58a47444dae81cf8e0af', 'ed7a138fd30290e7dd8d7a1ce83d6948', 1, 'openai', 'api.openai.com/v1', 'gpt-4o', 4, 4, 0, 1, 'settled', 'prod/budgeted/_/c12246fa4411442ea521809635248209/manifest.parquet', '0.00538000', '0.00022500', '0.000450000000', 'batch', '{"succeeded": 4}', '2026-11-24 19:22:56.490411', '2026-11-24 19:22:56.528545', NULL, NULL, '[]');
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('d82eb1e839b07e88', '156caa1080dc4262947436715c607f55', 'command', 'the labeler', 1, 0, 'collected', 'rd82eb1e839b07e88', 3, 633, 'prod/tickets/2026-01-01/156caa1080dc4262947436715c607f55/wave-1-0000.requests.jsonl.zst', 'cd3dff37a668a3542d7bb710a544caae', '0', 'dlb-55b44109-rd82eb1e839b07e88', '2026-11-24 19:22:54.906556', '2026-11-24 19:22:54.914632', '2026-11-24 19:22:54.951074', '2026-11-24 19:22:54.983165', '2026-11-24 19:22:55.030816', '2026-11-24 19:22:55.010630', 'ended', 3, 3, NULL, NULL, FALSE, 'prod/tickets/2026-01-01/156caa1080dc4262947436715c607f55/wave-1-0000.raw.jsonl.zst', 'prod/tickets/2026-01-01/156caa1080dc4262947436715c607f55/wave-1-0000.results.parquet', '0');
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('11e5c34aa1764382', '22eba4b0127a410aa3b23f9ee20a1d22', 'command', 'the labeler', 1, 0, 'collected', 'r11e5c34aa1764382', 3, 633, 'prod/tickets/2026-01-02/22eba4b0127a410aa3b23f9ee20a1d22/wave-1-0000.requests.jsonl.zst', '77c1c27a5ae5a8e2597e96e26a19a824', '0', 'dlb-55b44109-r11e5c34aa1764382', '2026-11-24 19:22:55.050770', '2026-11-24 19:22:55.053624', '2026-11-24 19:22:55.086805', '2026-11-24 19:22:55.117387', '2026-11-24 19:22:55.156188', '2026-11-24 19:22:55.143748', 'ended', 3, 3, NULL, NULL, FALSE, 'prod/tickets/2026-01-02/22eba4b0127a410aa3b23f9ee20a1d22/wave-1-0000.raw.jsonl.zst', 'prod/tickets/2026-01-02/22eba4b0127a410aa3b23f9ee20a1d22/wave-1-0000.results.parquet', '0');
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('406b61bcab5e5034', 'c3511341a5e24764b43c33f7909f4fd8', 'command', 'the labeler', 1, 0, 'submitted', 'r406b61bcab5e5034', 2, 422, 'prod/tickets/2026-01-03/c3511341a5e24764b43c33f7909f4fd8/wave-1-0000.requests.jsonl.zst', '399890c2f6ac0ffd69598b9a586f10d1', '0', 'dlb-55b44109-r406b61bcab5e5034', '2026-11-24 19:22:55.172795', '2026-11-24 19:22:55.175993', '2026-11-24 19:22:55.210197', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('6564acf57e5d2183', 'c3511341a5e24764b43c33f7909f4fd8', 'command', 'the labeler', 1, 1, 'submitted', 'r6564acf57e5d2183', 1, 211, 'prod/tickets/2026-01-03/c3511341a5e24764b43c33f7909f4fd8/wave-1-0001.requests.jsonl.zst', '2fe68425e9f3dcca7c88ff0e8022e603', '0', 'dlb-55b44109-r6564acf57e5d2183', '2026-11-24 19:22:55.172795', '2026-11-24 19:22:55.212784', '2026-11-24 19:22:55.252709', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('df76fc68b459d369', '0f3321169ac54a449e0bf3cd4bdb6142', 'command', 'the labeler', 1, 0, 'ended', 'rdf76fc68b459d369', 3, 633, 'prod/tickets/2026-01-04/0f3321169ac54a449e0bf3cd4bdb6142/wave-1-0000.requests.jsonl.zst', 'ddd4880e7018c1c524fb69580e2dc64a', '0', 'dlb-55b44109-rdf76fc68b459d369', '2026-11-24 19:22:55.315741', '2026-11-24 19:22:55.319287', '2026-11-24 19:22:55.353426', '2026-11-24 19:22:55.387233', NULL, '2026-11-24 19:22:55.411327', 'ended', 3, 3, NULL, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('dd78dda0d8598093', 'babd619994ee43e5b4a84c516ff9c9e5', 'command', 'the labeler', 1, 0, 'planned', 'rdd78dda0d8598093', 3, 633, 'prod/tickets/2026-01-05/babd619994ee43e5b4a84c516ff9c9e5/wave-1-0000.requests.jsonl.zst', '040be2032baa2f4adeb00bcba7da29f6', '0', NULL, '2026-11-24 19:22:55.420780', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('c1cbc476fae5df42', 'e5ccd74beafd4b168b1ea287ebdf57bb', 'command', 'the labeler', 1, 0, 'ended', 'rc1cbc476fae5df42', 3, 633, 'prod/tickets/2026-01-06/e5ccd74beafd4b168b1ea287ebdf57bb/wave-1-0000.requests.jsonl.zst', '7a900df90ee10cd7537b6983477824a9', '0', 'dlb-55b44109-rc1cbc476fae5df42', '2026-11-24 19:22:55.426591', '2026-11-24 19:22:55.429483', '2026-11-24 19:22:55.463381', '2026-11-24 19:22:55.496923', NULL, '2026-11-24 19:22:55.520473', 'ended', 3, 3, NULL, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('c95180aaf9faa488', 'ee730a5f59b84ca0b9ef5cd9b246f1b7', 'command', 'the labeler', 1, 0, 'planned', 'rc95180aaf9faa488', 4, 844, 'prod/tickets/2026-01-06/ee730a5f59b84ca0b9ef5cd9b246f1b7/wave-1-0000.requests.jsonl.zst', '97b8e558b5c7d897834afa31f674f226', '0', NULL, '2026-11-24 19:22:55.532974', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('8a60f057eb65067c', 'fa2645765a4a4aeabd0c62b9b6325648', 'openai', 'api.openai.com/v1', 1, 0, 'collected', 'r8a60f057eb65067c', 4, 836, 'prod/two_waves/_/fa2645765a4a4aeabd0c62b9b6325648/wave-1-0000.requests.jsonl.zst', '1ee0dd591fde1ca07de35c91efc3274d', '0.00538500', 'batch_82e2e662f728b4fa42485e3a', '2026-11-24 19:22:55.569523', '2026-11-24 19:22:55.576681', '2026-11-24 19:22:56.141903', '2026-11-24 19:22:56.000000', '2026-11-24 19:22:56.185811', '2026-11-24 19:22:56.153722', 'ended', 4, 4, 2, NULL, FALSE, 'prod/two_waves/_/fa2645765a4a4aeabd0c62b9b6325648/wave-1-0000.raw.jsonl.zst', 'prod/two_waves/_/fa2645765a4a4aeabd0c62b9b6325648/wave-1-0000.results.parquet', '0.00011250');
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('c0bf7e39a062310a', 'fa2645765a4a4aeabd0c62b9b6325648', 'openai', 'api.openai.com/v1', 2, 0, 'collected', 'rc0bf7e39a062310a', 2, 418, 'prod/two_waves/_/fa2645765a4a4aeabd0c62b9b6325648/wave-2-0000.requests.jsonl.zst', '912a3ebfa0c50b54eb385340cbe46a5d', '0.00269250', 'batch_8c778ea6eb2083e6ce164dba', '2026-11-24 19:22:56.193484', '2026-11-24 19:22:56.198685', '2026-11-24 19:22:56.205393', '2026-11-24 19:22:56.000000', '2026-11-24 19:22:56.228116', '2026-11-24 19:22:56.214681', 'ended', 2, 2, 0, NULL, FALSE, 'prod/two_waves/_/fa2645765a4a4aeabd0c62b9b6325648/wave-2-0000.raw.jsonl.zst', 'prod/two_waves/_/fa2645765a4a4aeabd0c62b9b6325648/wave-2-0000.results.parquet', '0.00011250');
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('9b6f306fdba5058c', 'fd14042ccb5b4b19a91921fd83651e4e', 'openai', 'api.openai.com/v1', 1, 0, 'collected', 'r9b6f306fdba5058c', 4, 848, 'prod/with_rejects/_/fd14042ccb5b4b19a91921fd83651e4e/wave-1-0000.requests.jsonl.zst', 'e7f520e5541df07f63a30b1d3870c52a', '0.00538500', 'batch_eece328bff7b118e820865d6', '2026-11-24 19:22:56.247302', '2026-11-24 19:22:56.251477', '2026-11-24 19:22:56.257697', '2026-11-24 19:22:56.000000', '2026-11-24 19:22:56.281668', '2026-11-24 19:22:56.266495', 'ended', 4, 4, 1, NULL, FALSE, 'prod/with_rejects/_/fd14042ccb5b4b19a91921fd83651e4e/wave-1-0000.raw.jsonl.zst', 'prod/with_rejects/_/fd14042ccb5b4b19a91921fd83651e4e/wave-1-0000.results.parquet', '0.00018750');
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('85463f5e5d166b35', '19c073b0ea1d491bab0412cfd3e565f3', 'openai', 'api.openai.com/v1', 1, 0, 'collected', 'r85463f5e5d166b35', 4, 856, 'prod/in_second_wave/_/19c073b0ea1d491bab0412cfd3e565f3/wave-1-0000.requests.jsonl.zst', 'fc7bd69fcbac30d60f0d32c08d2022d5', '0.00539000', 'batch_3c49d76fcfc6e62585940927', '2026-11-24 19:22:56.305476', '2026-11-24 19:22:56.309794', '2026-11-24 19:22:56.316440', '2026-11-24 19:22:56.000000', '2026-11-24 19:22:56.341629', '2026-11-24 19:22:56.325673', 'expired', 4, 4, 2, NULL, FALSE, 'prod/in_second_wave/_/19c073b0ea1d491bab0412cfd3e565f3/wave-1-0000.raw.jsonl.zst', 'prod/in_second_wave/_/19c073b0ea1d491bab0412cfd3e565f3/wave-1-0000.results.parquet', '0.00012500');
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('3c28bc7db9a29025', '19c073b0ea1d491bab0412cfd3e565f3', 'openai', 'api.openai.com/v1', 2, 0, 'submitted', 'r3c28bc7db9a29025', 2, 428, 'prod/in_second_wave/_/19c073b0ea1d491bab0412cfd3e565f3/wave-2-0000.requests.jsonl.zst', 'e6b5ceeaebeed8f6c80ad4359e004cb1', '0.00269500', 'batch_a25b59fd92e8e269d12ecbc4', '2026-11-24 19:22:56.347426', '2026-11-24 19:22:56.352106', '2026-11-24 19:22:56.357968', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('8949eb3af304f102', '83ce490bd82b4ec4ab44d60f530da681', 'openai', 'api.openai.com/v1', 1, 0, 'submitting', 'r8949eb3af304f102', 4, 840, 'prod/lost_reply/_/83ce490bd82b4ec4ab44d60f530da681/wave-1-0000.requests.jsonl.zst', '5722b1dfdea519338f19b3f42801ec74', '0.00538500', NULL, '2026-11-24 19:22:56.369169', '2026-11-24 19:22:56.373315', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('b22bb0ccadb4a969', 'b1377acd50a54233b6691c9bfcc370aa', 'openai', 'api.openai.com/v1', 1, 0, 'failed', 'rb22bb0ccadb4a969', 4, 828, 'prod/refused/_/b1377acd50a54233b6691c9bfcc370aa/wave-1-0000.requests.jsonl.zst', 'f60625a1e75b13853e18152470af9de1', '0.00538000', NULL, '2026-11-24 19:22:56.394626', '2026-11-24 19:22:56.398683', NULL, '2026-11-24 19:22:56.405997', NULL, NULL, 'failed', NULL, NULL, NULL, 'Could not create the batch at api.openai.com/v1: Error code: 400 - The request could not be processed.', FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('4fe896de43a5882c', '2318b9a82b254fcfaaf40ce28e4fa099', 'openai', 'api.openai.com/v1', 1, 0, 'expired', 'r4fe896de43a5882c', 4, 828, 'prod/expired/_/2318b9a82b254fcfaaf40ce28e4fa099/wave-1-0000.requests.jsonl.zst', 'c6c283c9b2631229f78aab7ac33533b8', '0.00538000', 'batch_aa6524ab713b7e05ebe21368', '2026-11-24 19:22:56.417075', '2026-11-24 19:22:56.421131', '2026-11-24 19:22:56.427174', '2026-11-24 19:22:56.000000', NULL, '2026-11-24 19:22:56.432483', 'expired', 4, 4, 2, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('fe42bc6300f93b3b', '98c47196bc8b4b24b63a6cfa90dbc168', 'openai', 'api.openai.com/v1', 1, 0, 'canceled', 'rfe42bc6300f93b3b', 4, 832, 'prod/canceled/_/98c47196bc8b4b24b63a6cfa90dbc168/wave-1-0000.requests.jsonl.zst', '257579f5a1f26d510717772440dfe815', '0.00538000', 'batch_9efee464da90f534a23d4c9d', '2026-11-24 19:22:56.442172', '2026-11-24 19:22:56.446256', '2026-11-24 19:22:56.452231', '2026-11-24 19:22:56.000000', NULL, '2026-11-24 19:22:56.457239', 'canceled', 4, 2, 0, NULL, FALSE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('4217c4ce0b916c3d', '77d53de1ec554ee5ac8587d4e7c8752b', 'openai', 'api.openai.com/v1', 1, 0, 'failed', 'r4217c4ce0b916c3d', 4, 824, 'prod/failed/_/77d53de1ec554ee5ac8587d4e7c8752b/wave-1-0000.requests.jsonl.zst', '1020c6d62b3fcb959e62860d7cd3291c', '0.00538000', 'batch_e28bc9ff870f084c7244f536', '2026-11-24 19:22:56.466941', '2026-11-24 19:22:56.471063', '2026-11-24 19:22:56.476484', '2026-11-24 19:22:56.000000', NULL, '2026-11-24 19:22:56.481673', 'failed', NULL, NULL, NULL, 'token_limit_exceeded: Enqueued token limit reached. Please try again once some in_progress batches have been completed.', TRUE, NULL, NULL, NULL);
INSERT INTO shard (shard_id, submission_id, provider, account, wave, number, state, nonce, requests, bytes, path, digest, estimated_usd, batch_id, planned_at, sent_at, submitted_at, ended_at, collected_at, polled_at, status, total, done, failed, reason, retryable, raw_path, results_path, cost_usd) VALUES
('6c07464868c797ab', 'c12246fa4411442ea521809635248209', 'openai', 'api.openai.com/v1', 1, 0, 'collected', 'r6c07464868c797ab', 4, 832, 'prod/budgeted/_/c12246fa4411442ea521809635248209/wave-1-0000.requests.jsonl.zst', '964ac3a9413d0e928081e4d0f39c4b50', '0.00538000', 'batch_cf1da1100cc36d8c77863fe5', '2026-11-24 19:22:56.491449', '2026-11-24 19:22:56.495440', '2026-11-24 19:22:56.501465', '2026-11-24 19:22:56.000000', '2026-11-24 19:22:56.523160', '2026-11-24 19:22:56.510392', 'ended', 4, 4, 0, NULL, FALSE, 'prod/budgeted/_/c12246fa4411442ea521809635248209/wave-1-0000.raw.jsonl.zst', 'prod/budgeted/_/c12246fa4411442ea521809635248209/wave-1-0000.results.parquet', '0.00022500');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('156caa1080dc4262947436715c607f55', NULL, '2026-11-24 19:22:54.908038', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('156caa1080dc4262947436715c607f55', 'd82eb1e839b07e88', '2026-11-24 19:22:54.916928', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('156caa1080dc4262947436715c607f55', 'd82eb1e839b07e88', '2026-11-24 19:22:54.953379', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('156caa1080dc4262947436715c607f55', 'd82eb1e839b07e88', '2026-11-24 19:22:54.958386', 'status', NULL, NULL, 'unknown -> running');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('156caa1080dc4262947436715c607f55', 'd82eb1e839b07e88', '2026-11-24 19:22:55.011459', 'status', NULL, NULL, 'running -> ended');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('156caa1080dc4262947436715c607f55', 'd82eb1e839b07e88', '2026-11-24 19:22:55.014080', 'ended', 'submitted', 'ended', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('156caa1080dc4262947436715c607f55', 'd82eb1e839b07e88', '2026-11-24 19:22:55.032406', 'collected', 'ended', 'collected', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('156caa1080dc4262947436715c607f55', NULL, '2026-11-24 19:22:55.039911', 'settled', 'open', 'settled', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('156caa1080dc4262947436715c607f55', NULL, '2026-11-24 19:22:55.044455', 'delivered', 'settled', 'settled', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('22eba4b0127a410aa3b23f9ee20a1d22', NULL, '2026-11-24 19:22:55.050893', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('22eba4b0127a410aa3b23f9ee20a1d22', '11e5c34aa1764382', '2026-11-24 19:22:55.054323', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('22eba4b0127a410aa3b23f9ee20a1d22', '11e5c34aa1764382', '2026-11-24 19:22:55.088075', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('22eba4b0127a410aa3b23f9ee20a1d22', '11e5c34aa1764382', '2026-11-24 19:22:55.091585', 'status', NULL, NULL, 'unknown -> running');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('22eba4b0127a410aa3b23f9ee20a1d22', '11e5c34aa1764382', '2026-11-24 19:22:55.144525', 'status', NULL, NULL, 'running -> ended');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('22eba4b0127a410aa3b23f9ee20a1d22', '11e5c34aa1764382', '2026-11-24 19:22:55.146351', 'ended', 'submitted', 'ended', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('22eba4b0127a410aa3b23f9ee20a1d22', '11e5c34aa1764382', '2026-11-24 19:22:55.157198', 'collected', 'ended', 'collected', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('22eba4b0127a410aa3b23f9ee20a1d22', NULL, '2026-11-24 19:22:55.162037', 'settled', 'open', 'settled', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c3511341a5e24764b43c33f7909f4fd8', NULL, '2026-11-24 19:22:55.173359', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c3511341a5e24764b43c33f7909f4fd8', '406b61bcab5e5034', '2026-11-24 19:22:55.176760', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c3511341a5e24764b43c33f7909f4fd8', '406b61bcab5e5034', '2026-11-24 19:22:55.211674', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c3511341a5e24764b43c33f7909f4fd8', '6564acf57e5d2183', '2026-11-24 19:22:55.213773', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c3511341a5e24764b43c33f7909f4fd8', '6564acf57e5d2183', '2026-11-24 19:22:55.254060', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('0f3321169ac54a449e0bf3cd4bdb6142', NULL, '2026-11-24 19:22:55.315917', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('0f3321169ac54a449e0bf3cd4bdb6142', 'df76fc68b459d369', '2026-11-24 19:22:55.320076', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('0f3321169ac54a449e0bf3cd4bdb6142', 'df76fc68b459d369', '2026-11-24 19:22:55.354893', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('0f3321169ac54a449e0bf3cd4bdb6142', 'df76fc68b459d369', '2026-11-24 19:22:55.359296', 'status', NULL, NULL, 'unknown -> running');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('0f3321169ac54a449e0bf3cd4bdb6142', 'df76fc68b459d369', '2026-11-24 19:22:55.412089', 'status', NULL, NULL, 'running -> ended');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('0f3321169ac54a449e0bf3cd4bdb6142', 'df76fc68b459d369', '2026-11-24 19:22:55.413897', 'ended', 'submitted', 'ended', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('babd619994ee43e5b4a84c516ff9c9e5', NULL, '2026-11-24 19:22:55.420923', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('e5ccd74beafd4b168b1ea287ebdf57bb', NULL, '2026-11-24 19:22:55.426713', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('e5ccd74beafd4b168b1ea287ebdf57bb', 'c1cbc476fae5df42', '2026-11-24 19:22:55.430259', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('e5ccd74beafd4b168b1ea287ebdf57bb', 'c1cbc476fae5df42', '2026-11-24 19:22:55.464834', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('e5ccd74beafd4b168b1ea287ebdf57bb', 'c1cbc476fae5df42', '2026-11-24 19:22:55.468433', 'status', NULL, NULL, 'unknown -> running');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('e5ccd74beafd4b168b1ea287ebdf57bb', 'c1cbc476fae5df42', '2026-11-24 19:22:55.521332', 'status', NULL, NULL, 'running -> ended');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('e5ccd74beafd4b168b1ea287ebdf57bb', 'c1cbc476fae5df42', '2026-11-24 19:22:55.523183', 'ended', 'submitted', 'ended', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('e5ccd74beafd4b168b1ea287ebdf57bb', NULL, '2026-11-24 19:22:55.529393', 'superseded', NULL, NULL, 'by submission ee730a5f59b84ca0b9ef5cd9b246f1b7');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('e5ccd74beafd4b168b1ea287ebdf57bb', NULL, '2026-11-24 19:22:55.530941', 'canceled', 'open', 'canceled', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('ee730a5f59b84ca0b9ef5cd9b246f1b7', NULL, '2026-11-24 19:22:55.533119', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', NULL, '2026-11-24 19:22:55.570433', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', '8a60f057eb65067c', '2026-11-24 19:22:55.578176', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', '8a60f057eb65067c', '2026-11-24 19:22:56.144158', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', '8a60f057eb65067c', '2026-11-24 19:22:56.155008', 'status', NULL, NULL, 'unknown -> ended');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', '8a60f057eb65067c', '2026-11-24 19:22:56.157443', 'ended', 'submitted', 'ended', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', '8a60f057eb65067c', '2026-11-24 19:22:56.187906', 'collected', 'ended', 'collected', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', NULL, '2026-11-24 19:22:56.194034', 'wave', 'open', 'open', 'wave 2, 1 shard(s), 2 request(s)');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', 'c0bf7e39a062310a', '2026-11-24 19:22:56.199425', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', 'c0bf7e39a062310a', '2026-11-24 19:22:56.206196', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', 'c0bf7e39a062310a', '2026-11-24 19:22:56.215212', 'status', NULL, NULL, 'unknown -> ended');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', 'c0bf7e39a062310a', '2026-11-24 19:22:56.216506', 'ended', 'submitted', 'ended', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', 'c0bf7e39a062310a', '2026-11-24 19:22:56.229023', 'collected', 'ended', 'collected', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fa2645765a4a4aeabd0c62b9b6325648', NULL, '2026-11-24 19:22:56.235505', 'settled', 'open', 'settled', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fd14042ccb5b4b19a91921fd83651e4e', NULL, '2026-11-24 19:22:56.247453', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fd14042ccb5b4b19a91921fd83651e4e', '9b6f306fdba5058c', '2026-11-24 19:22:56.252223', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fd14042ccb5b4b19a91921fd83651e4e', '9b6f306fdba5058c', '2026-11-24 19:22:56.258547', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fd14042ccb5b4b19a91921fd83651e4e', '9b6f306fdba5058c', '2026-11-24 19:22:56.267002', 'status', NULL, NULL, 'unknown -> ended');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fd14042ccb5b4b19a91921fd83651e4e', '9b6f306fdba5058c', '2026-11-24 19:22:56.268326', 'ended', 'submitted', 'ended', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fd14042ccb5b4b19a91921fd83651e4e', '9b6f306fdba5058c', '2026-11-24 19:22:56.282579', 'collected', 'ended', 'collected', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('fd14042ccb5b4b19a91921fd83651e4e', NULL, '2026-11-24 19:22:56.287490', 'settled', 'open', 'settled', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', NULL, '2026-11-24 19:22:56.305642', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', '85463f5e5d166b35', '2026-11-24 19:22:56.310558', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', '85463f5e5d166b35', '2026-11-24 19:22:56.317331', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', '85463f5e5d166b35', '2026-11-24 19:22:56.326214', 'status', NULL, NULL, 'unknown -> expired');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', '85463f5e5d166b35', '2026-11-24 19:22:56.327506', 'expired', 'submitted', 'expired', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', '85463f5e5d166b35', '2026-11-24 19:22:56.342597', 'collected', 'expired', 'collected', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', NULL, '2026-11-24 19:22:56.347736', 'wave', 'open', 'open', 'wave 2, 1 shard(s), 2 request(s)');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', '3c28bc7db9a29025', '2026-11-24 19:22:56.352886', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('19c073b0ea1d491bab0412cfd3e565f3', '3c28bc7db9a29025', '2026-11-24 19:22:56.358915', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('83ce490bd82b4ec4ab44d60f530da681', NULL, '2026-11-24 19:22:56.369311', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('83ce490bd82b4ec4ab44d60f530da681', '8949eb3af304f102', '2026-11-24 19:22:56.374049', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('83ce490bd82b4ec4ab44d60f530da681', NULL, '2026-11-24 19:22:56.380050', 'ambiguous', NULL, NULL, '8949eb3af304f102: Could not create the batch at api.openai.com/v1, or perhaps did: Error code: 500 - The server had an error while processing your request. Sorry about that! Look for the batch before creating it again.');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('b1377acd50a54233b6691c9bfcc370aa', NULL, '2026-11-24 19:22:56.394760', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('b1377acd50a54233b6691c9bfcc370aa', 'b22bb0ccadb4a969', '2026-11-24 19:22:56.399435', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('b1377acd50a54233b6691c9bfcc370aa', 'b22bb0ccadb4a969', '2026-11-24 19:22:56.407485', 'refused', 'submitting', 'failed', 'Could not create the batch at api.openai.com/v1: Error code: 400 - The request could not be processed.');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('2318b9a82b254fcfaaf40ce28e4fa099', NULL, '2026-11-24 19:22:56.417217', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('2318b9a82b254fcfaaf40ce28e4fa099', '4fe896de43a5882c', '2026-11-24 19:22:56.421883', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('2318b9a82b254fcfaaf40ce28e4fa099', '4fe896de43a5882c', '2026-11-24 19:22:56.428021', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('2318b9a82b254fcfaaf40ce28e4fa099', '4fe896de43a5882c', '2026-11-24 19:22:56.433066', 'status', NULL, NULL, 'unknown -> expired');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('2318b9a82b254fcfaaf40ce28e4fa099', '4fe896de43a5882c', '2026-11-24 19:22:56.434324', 'expired', 'submitted', 'expired', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('98c47196bc8b4b24b63a6cfa90dbc168', NULL, '2026-11-24 19:22:56.442310', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('98c47196bc8b4b24b63a6cfa90dbc168', 'fe42bc6300f93b3b', '2026-11-24 19:22:56.446982', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('98c47196bc8b4b24b63a6cfa90dbc168', 'fe42bc6300f93b3b', '2026-11-24 19:22:56.453061', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('98c47196bc8b4b24b63a6cfa90dbc168', 'fe42bc6300f93b3b', '2026-11-24 19:22:56.457956', 'status', NULL, NULL, 'unknown -> canceled');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('98c47196bc8b4b24b63a6cfa90dbc168', 'fe42bc6300f93b3b', '2026-11-24 19:22:56.459451', 'canceled', 'submitted', 'canceled', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('77d53de1ec554ee5ac8587d4e7c8752b', NULL, '2026-11-24 19:22:56.467071', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('77d53de1ec554ee5ac8587d4e7c8752b', '4217c4ce0b916c3d', '2026-11-24 19:22:56.471778', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('77d53de1ec554ee5ac8587d4e7c8752b', '4217c4ce0b916c3d', '2026-11-24 19:22:56.477406', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('77d53de1ec554ee5ac8587d4e7c8752b', '4217c4ce0b916c3d', '2026-11-24 19:22:56.482203', 'status', NULL, NULL, 'unknown -> failed');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('77d53de1ec554ee5ac8587d4e7c8752b', '4217c4ce0b916c3d', '2026-11-24 19:22:56.483473', 'failed', 'submitted', 'failed', 'token_limit_exceeded: Enqueued token limit reached. Please try again once some in_progress batches have been completed.');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c12246fa4411442ea521809635248209', NULL, '2026-11-24 19:22:56.491582', 'opened', NULL, 'open', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c12246fa4411442ea521809635248209', '6c07464868c797ab', '2026-11-24 19:22:56.496169', 'send', 'planned', 'submitting', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c12246fa4411442ea521809635248209', '6c07464868c797ab', '2026-11-24 19:22:56.502242', 'accepted', 'submitting', 'submitted', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c12246fa4411442ea521809635248209', '6c07464868c797ab', '2026-11-24 19:22:56.510905', 'status', NULL, NULL, 'unknown -> ended');
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c12246fa4411442ea521809635248209', '6c07464868c797ab', '2026-11-24 19:22:56.512210', 'ended', 'submitted', 'ended', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c12246fa4411442ea521809635248209', '6c07464868c797ab', '2026-11-24 19:22:56.524094', 'collected', 'ended', 'collected', NULL);
INSERT INTO event (submission_id, shard_id, at, kind, from_state, to_state, detail) VALUES
('c12246fa4411442ea521809635248209', NULL, '2026-11-24 19:22:56.529186', 'settled', 'open', 'settled', NULL);
