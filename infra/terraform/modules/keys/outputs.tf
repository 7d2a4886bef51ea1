output "platform_arn" {
  description = "Key of secrets, logs, database, images and queues."
  value       = aws_kms_key.platform.arn
}

output "artifacts_arn" {
  description = "Key of the bucket."
  value       = aws_kms_key.artifacts.arn
}

output "signing_arn" {
  description = "Key that signs models."
  value       = aws_kms_key.signing.arn
}

output "signing_alias" {
  description = "Its alias, as HARDCASE_SIGNING_KEY names it after awskms:."
  value       = aws_kms_alias.signing.name
}
