output "id" {
  description = "Id of the file system, for places.yaml."
  value       = aws_efs_file_system.this.id
  # Whoever mounts it must find it in the own zone.
  depends_on = [aws_efs_mount_target.this]
}
