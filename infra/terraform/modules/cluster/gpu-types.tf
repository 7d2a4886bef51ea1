# What is known of instance types with GPUs: the label that pods select by (hardcase.io/gpu-memory: pools of
# infra/kubernetes/base/cluster/nodepools.yaml) and how many network cards take EFA. All have NVMe disks, encrypted by the
# hardware. From AWS's pages of instance types, accelerated computing.
locals {
  gpu_types = {
    "g5.12xlarge"   = { memory = "24gb", efa = 0 }  # 4 A10G, 24 GB
    "g5.48xlarge"   = { memory = "24gb", efa = 1 }  # 8 A10G, 24 GB
    "g6.12xlarge"   = { memory = "24gb", efa = 0 }  # 4 L4, 24 GB
    "g6.48xlarge"   = { memory = "24gb", efa = 1 }  # 8 L4, 24 GB
    "g6e.12xlarge"  = { memory = "24gb", efa = 1 }  # 4 L40S, 48 GB
    "g6e.48xlarge"  = { memory = "24gb", efa = 4 }  # 8 L40S, 48 GB
    "p4d.24xlarge"  = { memory = "24gb", efa = 4 }  # 8 A100, 40 GB
    "p4de.24xlarge" = { memory = "80gb", efa = 4 }  # 8 A100, 80 GB
    "p5.48xlarge"   = { memory = "80gb", efa = 32 } # 8 H100, 80 GB
    "p5e.48xlarge"  = { memory = "80gb", efa = 32 } # 8 H200, 141 GB
    "p5en.48xlarge" = { memory = "80gb", efa = 16 } # 8 H200, 141 GB
  }
}
